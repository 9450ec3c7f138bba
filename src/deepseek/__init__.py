"""deepseek: serve many models for many teams from one YAML file, through the OpenAI API.

Importing the package loads nothing heavy; open `deepseek.app` first, its docstring tells the life
of a request.
"""

__version__ = "0.1.0"
