"""`deepseek serve`: the address that the command line puts over the file's."""

from deepseek.cli.serve import listen_on
from deepseek.deployment_file import load_deployment_file, quickstart_path


def test_host_and_port_override_the_file_and_nothing_else() -> None:
    original = load_deployment_file(quickstart_path())
    changed = listen_on(original, host="0.0.0.0", port=0)  # noqa: S104
    assert (changed.gateway.host, changed.gateway.port) == ("0.0.0.0", 0)  # noqa: S104
    assert changed.gateway.max_body_bytes == original.gateway.max_body_bytes
    assert changed.models == original.models
    assert listen_on(original, host=None, port=None) == original
