"""Whether an action keeps what every preloading policy promises."""

from deepseek.scheduling.preloading.base import Action, Cancel, Evict, Load, Residency, Tier


def check_action(residency: Residency, action: Action) -> None:
    """Raise `RuntimeError` where an action breaks what `PreloadingPolicy` promises."""
    model = residency.model(action.model)
    match action:
        case Evict():
            is_kept = residency.in_flight is None and model.is_evictable(action.tier)
        case Cancel():
            load = residency.in_flight
            is_kept = load is not None and not load.is_on_demand and load.model == action.model
        case Load():
            is_kept = residency.in_flight is None and action.tier not in model.held
            is_kept = is_kept and all(
                action.bytes_in(tier, model) <= residency.free_bytes(tier)
                for tier in (Tier.HOST, Tier.DEVICE)
            )
    if not is_kept:
        raise RuntimeError(f"a promise is broken by {action} in {residency}")
