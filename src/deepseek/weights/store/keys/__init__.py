"""Where the keys of sealed models come from: a plug-in point, `deepseek.key_sources`."""
