# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""EngineOptions: ranges, the environment, and a secret that never shows."""

import dataclasses
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_async import options, topology
from pplx_async.options import EngineOptions, join_address, split_address


class Plan:
    def options(self):
        return {"seed": "1"}


def test_defaults_are_valid_and_frozen():
    made = EngineOptions()
    assert (made.fabric, made.domains, made.listen, made.secret_bytes) == ("auto", 1, "127.0.0.1:0", None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.domains = 2
    with pytest.raises(TypeError):
        EngineOptions("tcp")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("fabric", "tpc", "did you mean 'tcp'"),
        ("fabric", "", "fabric is empty"),
        ("domains", 0, "1 to 8"),
        ("domains", 9, "1 to 8"),
        ("ring_entries", 1000, "power of two"),
        ("ring_entries", 1, "2 to 1048576"),
        ("max_pending", 0, "1 to"),
        ("spin", -1e-9, r"0\.0 to 1\.0 s"),
        ("spin", float("nan"), r"0\.0 to 1\.0 s"),
        ("poll_interval", 0, "1e-06 to"),
        ("peer_timeout", float("inf"), "to 86400"),
        ("peer_timeout", 0.4, "twice heartbeat_interval"),
        ("heartbeat_interval", 2.0, "peer_timeout"),
        ("shard_nbytes", 1, "4096 to .* B"),
        ("message_nbytes", 1 << 21, "64 to"),
        ("message_slots", 0, "1 to"),
        ("cpu", -1, "0 to"),
        ("listen", "127.0.0.1", "host:port"),
        ("listen", "::1:80", "host:port"),
        ("listen", "h:70000", "65535"),
        ("advertise", "[::1", "host"),
        ("advertise", "host:", "host"),
        ("secret", b"", "empty"),
        ("secret", "", "empty"),
        ("name", "x" * 129, "at most 128"),
        ("faults", Plan(), "only loopback"),
    ],
)
def test_out_of_range(field, value, says):
    with pytest.raises(ValueError, match=says) as caught:
        EngineOptions(**{field: value})
    assert field in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("domains", "2"),
        ("domains", 2.0),
        ("domains", True),
        ("spin", "1"),
        ("spin", None),
        ("fabric", None),
        ("fabric", 5),
        ("devices", ["eth0"]),
        ("devices", ("",)),
        ("allow_insecure", 1),
        ("ipc_vm_writev", 1),
        ("secret", 5),
        ("ssl_server", "cert.pem"),
        ("faults", 7),
        ("library", b"/lib"),
    ],
)
def test_wrong_type(field, value):
    with pytest.raises(TypeError, match=field):
        EngineOptions(**{field: value})


@pytest.mark.parametrize(("seconds", "holders_ms"), [(5.0, "3900"), (1.0, "700"), (0.0, "300")])
def test_ipc_waits_for_other_holders_within_the_time_to_drain_or_a_moment(seconds, holders_ms):
    (part,) = topology.choose(EngineOptions(fabric="ipc", drain_timeout=seconds)).parts
    assert part.options["holders_ms"] == holders_ms


@pytest.mark.parametrize(("seconds", "gpu_ms"), [(3.0, "1000"), (60.0, "20000")])
def test_ipc_waits_for_a_gpu_a_third_of_the_silence_that_makes_a_peer_lost(seconds, gpu_ms):
    (part,) = topology.choose(EngineOptions(fabric="ipc", peer_timeout=seconds)).parts
    assert part.options["gpu_ms"] == gpu_ms


def test_what_is_allowed():
    context = ssl.create_default_context()
    EngineOptions(fabric="loopback", faults=Plan(), ssl_client=context, ssl_server=context)
    EngineOptions(fabric="/opt/my_provider.so", heartbeat_interval=0, peer_timeout=0.001, cpu=0)
    EngineOptions(listen="[::1]:0", advertise="node7", devices=("a", "b"), spin=0)
    EngineOptions(advertise="[fe80::1]:7000", listen="0.0.0.0:7000", secret=b"s")


def test_secret_is_never_shown():
    made = EngineOptions(secret="hunter2")
    assert made.secret_bytes == b"hunter2"
    assert "hunter2" not in repr(made)
    assert EngineOptions.from_env({"PPLX_ASYNC_SECRET": "hunter2"}) == made
    with pytest.raises(ValueError) as caught:
        EngineOptions.from_env({"PPLX_ASYNC_SECRET": "hunter2", "PPLX_ASYNC_DOMAINS": "many"})
    assert "hunter2" not in str(caught.value)


def test_every_variable_is_read():
    texts = {
        "fabric": ("efa", "efa"),
        "domains": ("4", 4),
        "devices": ("a, b", ("a", "b")),
        "library": ("/lib/libfabric.so.1", "/lib/libfabric.so.1"),
        "listen": ("127.0.0.1:7", "127.0.0.1:7"),
        "advertise": ("node7", "node7"),
        "secret": ("s", "s"),
        "allow_insecure": ("Yes", True),
        "ipc_vm_writev": ("1", True),
        "rail_failover": ("1", True),
        "ring_entries": ("0x80", 128),
        "wakeup": ("spin", "spin"),
        "progress": ("proxy", "proxy"),
        "near": ("gpu3", "gpu3"),
        "cpu": ("3", 3),
        "verbs_gid_index": ("3", 3),
        "verbs_traffic_class": ("106", 106),
        "verbs_service_level": ("2", 2),
        "cuda_library": ("/lib/libcuda.so.1", "/lib/libcuda.so.1"),
        "name": ("n", "n"),
    }
    variables = EngineOptions.env_variables()
    environ, expected = {}, {}
    for row in variables:
        text, value = texts.get(row.field, ("500", 500))
        if row.field in {"spin", "poll_interval", "heartbeat_interval"}:
            text, value = "0.5", 0.5
        if row.field == "shard_nbytes":
            text, value = "5000", 5000
        environ[row.variable], expected[row.field] = text, value
        assert row.help
        assert row.variable == "PPLX_ASYNC_" + row.field.upper()
    assert EngineOptions.from_env(environ) == EngineOptions(**expected)
    unread = {f.name for f in dataclasses.fields(EngineOptions)} - {row.field for row in variables}
    assert unread == {"ssl_server", "ssl_client", "faults"}


def test_documented():
    for field in dataclasses.fields(EngineOptions):
        assert field.name in EngineOptions.__doc__


def test_arguments_win():
    environ = {"PPLX_ASYNC_DOMAINS": "nonsense", "PPLX_ASYNC_CPU": "3"}
    made = EngineOptions.from_env(environ, domains=2, cpu=None)
    assert (made.domains, made.cpu) == (2, None)
    assert EngineOptions.from_env({"PPLX_ASYNC_CPU": ""}).cpu is None
    with pytest.raises(TypeError):
        EngineOptions.from_env({}, domain=2)


def test_os_environ(monkeypatch):
    monkeypatch.setenv("PPLX_ASYNC_DOMAINS", "3")
    assert EngineOptions.from_env().domains == 3


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PPLX_ASYNC_DOMAINS", "many"),
        ("PPLX_ASYNC_DOMAINS", "99"),
        ("PPLX_ASYNC_SPIN", "fast"),
        ("PPLX_ASYNC_ALLOW_INSECURE", "perhaps"),
        ("PPLX_ASYNC_FABRIC", ""),
    ],
)
def test_unreadable_variable_is_named(variable, text):
    with pytest.raises(ValueError, match=variable):
        EngineOptions.from_env({variable: text})


def test_misspelt_variable_is_reported(caplog):
    EngineOptions.from_env({"PPLX_ASYNC_DOMAIN": "2", "PPLX_ASYNC_SANITIZE": "address", "OTHER": "x"})
    assert [record.message for record in caplog.records] == [
        "PPLX_ASYNC_DOMAIN is no option and is ignored; is PPLX_ASYNC_DOMAINS meant?"
    ]


@given(st.sampled_from(["h", "127.0.0.1", "::1", "fe80::1%eth0"]), st.integers(0, 65535))
def test_address_round_trip(host, port):
    assert split_address(join_address(host, port)) == (host, port)


@given(st.text())
def test_address_is_split_or_refused(text):
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535


@pytest.mark.parametrize("text", ["h:+1", "h:1_0", "h: 1", "h:١", "h:-1", ":1", "h", "[]:1", "a:b:1", "h:000001"])
def test_odd_addresses(text):
    with pytest.raises(ValueError, match="expected"):
        split_address(text)


def test_faults_protocol():
    assert isinstance(Plan(), options.SupportsFaults)
