"""What one model's next step holds: policies, and the estimate of what a step costs."""
