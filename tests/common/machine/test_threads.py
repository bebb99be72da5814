"""What PyTorch's threads are told about waiting."""

from tsconvert.common.machine.threads import wait_briefly


def test_threads_are_told_to_wait_briefly():
    environment: dict[str, str] = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": "10000"}


def test_what_the_user_said_stays():
    for said in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}):
        environment = dict(said)
        wait_briefly(environment)
        assert environment == said
