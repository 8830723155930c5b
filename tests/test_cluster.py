"""Resources that Ray lacks are reported at once, before anything is trained."""

import socket
import threading

import pytest
import torch
from test_cohorts import tables_of
from worlds import write_cycle

from recbole_llm import cli
from recbole_llm.errors import UserError
from recbole_llm.studies import ray_cluster
from recbole_llm.studies.ray_cluster import Cluster, endpoint

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be given")


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("127.0.0.1:6379", ("127.0.0.1", 6379)),
        ("head.cluster.internal:1", ("head.cluster.internal", 1)),
        ("[::1]:6379", ("::1", 6379)),
        ("fe80::1:6379", ("fe80::1", 6379)),
    ],
)
def test_addresses(address, found):
    assert endpoint(address) == found


@pytest.mark.parametrize(
    "address",
    [
        "ray://127.0.0.1:10001",
        "http://head:8265",
        "head",
        "head:",
        ":6379",
        "head:ray",
        "head:0",
        "head:65536",
        "[::1]",
    ],
)
def test_what_is_no_address(address):
    with pytest.raises(UserError, match="ray_address: expected HOST:PORT of a cluster"):
        endpoint(address)


def test_auto_is_the_cluster_that_the_machine_knows(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert endpoint("auto") is None
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.1:6379\n")
    assert endpoint("auto") == ("10.0.0.1", 6379)
    monkeypatch.setenv("RAY_ADDRESS", "head:7000")
    assert endpoint("auto") == ("head", 7000)


def refused(address):
    with pytest.raises(UserError) as fault:
        ray_cluster.check(Cluster(address))
    assert "\n" not in str(fault.value)
    return str(fault.value)


def test_the_probe_has_a_time_limit_of_its_own(monkeypatch):
    """The connection to an unresponsive address ends after PROBE_SECONDS."""
    asked = []

    def silent(address, timeout):
        asked.append((address, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    assert "no Ray cluster answers at 10.255.255.1:6379: timed out" in refused("10.255.255.1:6379")
    assert asked == [(("10.255.255.1", 6379), ray_cluster.PROBE_SECONDS)] and asked[0][1] <= 3


def test_a_name_whose_lookup_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(socket, "create_connection", lambda *a, **b: threading.Event().wait(9))
    assert "no Ray cluster answers at head:6379: no answer in 0.1 seconds" in refused("head:6379")


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_nobody_listens(family):
    host = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}[family]
    assert f"no Ray cluster answers at [{host}]:1: " in refused(f"[{host}]:1")


@pytest.mark.parametrize(
    "greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 400 Bad Request\r\n", b""]
)
def test_another_service_listens(greeting, monkeypatch):
    """The service answers something else, or closes without an answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            connection.recv(10_000)
            connection.sendall(greeting)
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        assert "is no Ray cluster" in refused(f"127.0.0.1:{server.getsockname()[1]}")


def frame(kind, flags, content):
    return len(content).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 1]) + content


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        (frame(1, 4, b"\x8d"), False),  # 404, as of a proxy
        (frame(8, 0, bytes(4)) + frame(4, 1, b"") + frame(1, 5, b"\x8c"), False),  # 400
        (frame(1, 4, b"\x88"), True),  # 200, as of any gRPC server
        (frame(1, 0x24, b"\x8d" + bytes(5)), True),  # with a priority before the fields
        (frame(7, 0, bytes(8)), True),  # goes away: Ray may say why
        (b"", True),
    ],
)
def test_a_server_of_http2_that_is_no_grpc_is_told(answer, passes):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            connection.recv(10_000)
            connection.sendall(frame(4, 0, bytes(6)) + answer)
            connection.close()

        threading.Thread(target=serve, daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if passes:
            ray_cluster._probe(address)
        else:
            with pytest.raises(UserError, match=f"what answers at {address} is no Ray cluster"):
                ray_cluster._probe(address)


@pytest.mark.slow
def test_a_ray_of_its_own_passes(monkeypatch):
    """Ray's server knows the call, but would answer any other with status 200 as well."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        ray_cluster._probe(machines.address)
        monkeypatch.setattr(ray_cluster, "_grpc_call", lambda authority: b"")
        ray_cluster._probe(machines.address)
    finally:
        machines.shutdown()


def test_a_service_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f"no Ray cluster answers at 127.0.0.1:{port}: timed out" in refused(
            f"127.0.0.1:{port}"
        )


def test_a_connection_that_hangs_is_given_up(monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray_cluster, "_probe", lambda address: None)
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(ray, "init", lambda **how: threading.Event().wait(9))
    assert "answers at head:6379: no connection in 0.1 seconds" in refused("head:6379")


def test_resources_of_one_machine_have_to_do(monkeypatch):
    """Work has to fit on one machine, and takes a GPU where there are any unless it names GPUs."""
    machines = [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}]
    assert ray_cluster._check_resources(Cluster(cpus=2), machines) == 1
    assert ray_cluster._check_resources(Cluster(cpus=8, gpus=0), machines) == 0
    assert ray_cluster._check_resources(Cluster(cpus=2), machines[:1]) == 0
    for cpus, gpus in ((8, None), (9, 0), (1, 1.5)):
        with pytest.raises(
            UserError, match="found 8 cores and 0 GPUs; 2 cores and 1 GPUs; lower --a or --b"
        ):
            ray_cluster._check_resources(Cluster(cpus=cpus, gpus=gpus, keys=("a", "b")), machines)


# Commands

ADDRESSES = [
    ("--ray_address=127.0.0.1:1", "ray_address: no Ray cluster answers at 127.0.0.1:1"),
    ("--ray_address=nohost.invalid:6379", "ray_address: no Ray cluster answers at nohost.invalid"),
    ("--ray_address=ray://127.0.0.1:10001", "ray_address: expected HOST:PORT"),
    ("--ray_address=head", "ray_address: expected HOST:PORT"),
]
CPUS = "expected a machine with 99999 cores and "
GPUS = "expected a machine with 1 cores and 0.5 GPUs for each piece of work, found "


@pytest.fixture
def untrained(tmp_path, capfd, monkeypatch):
    """Return untrained(command, dataset, *more), which returns the error of a command.

    It checks that the command trains nothing and writes nothing.
    """
    pytest.importorskip("ray")

    def trained(*args, **more):
        raise AssertionError("something is trained")

    monkeypatch.setattr("recbole_llm.runs.runner.Runner.train", trained)
    monkeypatch.setattr("recbole_llm.studies.ray_cluster.trials", trained)

    def run(command, *more):
        saved = tmp_path / "saved"
        where = [f"--data_path={tmp_path}", f"--checkpoint_dir={saved}", "--show_progress=false"]
        assert cli.main([command, *where, *more]) == 2
        said = capfd.readouterr()
        assert said.err.count("\n") == 1 and not saved.exists()
        return said.err

    return run


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *ADDRESSES,
        ("--unit_cpus=99999", CPUS),
        pytest.param("--unit_gpus=0.5", GPUS, marks=NO_GPU),
    ],
)
def test_personalize_tells_it_before_a_model_is_trained(untrained, tmp_path, more, message):
    tables_of(tmp_path / "shop")
    error = untrained("personalize", "--dataset=shop", "--models=2,3", more)
    assert message in error and ("lower --unit_cpus or --unit_gpus" in error) == ("unit" in more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        *ADDRESSES,
        ("--trial_cpus=99999", CPUS),
        pytest.param("--trial_gpus=0.5", GPUS, marks=NO_GPU),
    ],
)
def test_tune_tells_it_before_a_trial_begins(untrained, tmp_path, more, message):
    write_cycle(tmp_path)
    how = ["--dataset=cycle", "--model=GRU4Rec", "--space.hidden_size=[8, 16]", more]
    error = untrained("tune", *how)
    assert message in error and ("lower --trial_cpus or --trial_gpus" in error) == ("trial" in more)
