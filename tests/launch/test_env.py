"""What is added to the environment: options always, defaults where the user has set nothing."""

from __future__ import annotations

from launch.env import settings


def test_options_reach_the_ranks() -> None:
    added = settings(
        {"LLAMA_TP_SIZE": "8"},
        tp_size=2, pp_size=3, backend="gloo", device="cpu", n_threads=4, interface="lo",
        transport="shm",
    )  # fmt: skip
    assert added == {
        "LLAMA_TP_SIZE": "2",
        "LLAMA_PP_SIZE": "3",
        "LLAMA_BACKEND": "gloo",
        "LLAMA_DEVICE": "cpu",
        "LLAMA_TRANSPORT": "shm",
        "OMP_NUM_THREADS": "4",
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


def test_what_was_not_asked_is_left_open() -> None:
    added = settings(
        {}, tp_size=None, pp_size=None, backend=None, device=None, n_threads=1, interface=None
    )
    assert added == {"OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def test_what_the_user_has_set_stays() -> None:
    environ = {
        "OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "eth7", "TORCH_CPP_LOG_LEVEL": "INFO",
    }  # fmt: skip
    added = settings(
        environ, tp_size=1, pp_size=None, backend=None, device=None, n_threads=1, interface="lo"
    )
    assert added == {"LLAMA_TP_SIZE": "1", "TORCH_CPP_LOG_LEVEL": "INFO"}


def test_ranks_are_as_optimised_as_the_launcher() -> None:
    nothing = {"tp_size": None, "pp_size": None, "backend": None, "device": None}
    added = settings({}, **nothing, n_threads=1, interface=None, optimize=2)
    assert added["PYTHONOPTIMIZE"] == "2"
