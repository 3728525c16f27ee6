"""The NVML path: the real pynvml on a small library of our own, scripted by a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.devices.nvml_fakes import GIB, NvmlWorker, build_library, gpu
from tests.devices.roots import Root

A = "GPU-aaaaaaaa-0000-0000-0000-000000000001"
B = "GPU-bbbbbbbb-0000-0000-0000-000000000002"
C = "GPU-bccccccc-0000-0000-0000-000000000003"

THREE = (gpu(A, "41"), gpu(B, "0a"), gpu(C, "81"))
"""In NVML's order; by PCI bus they are B, A, C."""

CHILD, OTHER = 4100, 5200
NOT_SUPPORTED, NO_PERMISSION, GPU_IS_LOST, DRIVER_NOT_LOADED, MISMATCH = 3, 4, 15, 9, 18


# Which GPU is which


def test_gpus_are_named_in_pci_order_not_in_nvmls(nvml: NvmlWorker) -> None:
    nvml.script(*THREE)
    assert nvml.uuids() == {"CUDA0": B, "CUDA1": A, "CUDA2": C}


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        ("2,0", [C, B]),
        (f"{A},{B}", [A, B]),
        ("GPU-aaaa, 2", [A, C]),
        ("GPU-b,0", []),  # two begin so: names none, and ends the list
        ("0,7,1", [B]),
        ("0,-1,1", [B]),
        ("1,1,0", [A]),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_cuda_visible_devices_selects_and_reorders(
    nvml: NvmlWorker, value: str, seen: list[str]
) -> None:
    nvml.script(*THREE)
    found = nvml.uuids(CUDA_VISIBLE_DEVICES=value, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert found == {f"CUDA{number}": uuid for number, uuid in enumerate(seen)}


def test_a_gpu_that_cannot_be_read_keeps_its_number_and_is_left_out(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "01"), gpu(B, "02", memory=GPU_IS_LOST), gpu(C, "03"))
    answer = nvml.devices()
    assert {one["id"]: one["uuid"] for one in answer.result} == {"CUDA0": A, "CUDA2": C}
    (line,) = answer.log
    assert line.startswith("WARNING CUDA1: its memory cannot be read")
    assert "memory.devices" in line


def test_a_gpu_that_is_not_found_keeps_its_place(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "01"), gpu(B, "02", find=GPU_IS_LOST), gpu(C, "03"))
    assert nvml.uuids() == {"CUDA0": A, "CUDA2": C}


def test_declared_budgets_overrule_and_keep_the_uuid(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "01"), gpu(B, "02", memory=NOT_SUPPORTED))
    answer = nvml.devices(declared={"CUDA1": 5 * GIB, "CUDA7": GIB})
    found = [(one["id"], one["total"], one["source"], one["uuid"]) for one in answer.result]
    assert found == [("CUDA1", 5 * GIB, "declared", B), ("CUDA7", GIB, "declared", None)]
    assert answer.log == []


def test_a_gpu_without_uuid_is_named_by_its_number_on_the_bus(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "41"), gpu("", "0a"), gpu("", "81", used=GIB))
    assert nvml.uuids() == {"CUDA0": "0", "CUDA1": A, "CUDA2": "2"}
    chosen = nvml.uuids(CUDA_VISIBLE_DEVICES="2,0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert chosen == {"CUDA0": "2", "CUDA1": "0"}


def test_mig_instances_are_devices_and_their_gpu_is_not(nvml: NvmlWorker) -> None:
    nvml.script(
        gpu(A, "01"),
        gpu(B, "02", mig=1),
        gpu("MIG-1111", "02", total=10 * GIB).replace("gpu ", "mig 1 "),
        gpu("MIG-2222", "02", total=20 * GIB).replace("gpu ", "mig 1 "),
    )
    assert list(nvml.uuids().values()) == [A, "MIG-1111", "MIG-2222"]
    assert list(nvml.uuids(CUDA_VISIBLE_DEVICES="MIG-2222").values()) == ["MIG-2222"]
    by_index = nvml.uuids(CUDA_VISIBLE_DEVICES="1", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert list(by_index.values()) == ["MIG-1111"]
    totals = {one["uuid"]: one["total"] // GIB for one in nvml.devices().result}
    assert totals == {A: 24, "MIG-1111": 10, "MIG-2222": 20}


# CUDA's own order, by speed


def test_indices_among_unlike_gpus_are_read_as_cuda_counts_them(
    nvml: NvmlWorker, tmp_path: Path
) -> None:
    build_library("fake_cuda.c", nvml.script_file.parent / "libcuda.so.1")
    nvml.script(gpu(A, "01", name="T400"), gpu(B, "02", name="H100"), gpu(C, "03", name="T400"))
    fastest_first = " ".join(uuid.removeprefix("GPU-").replace("-", "") for uuid in (B, A, C))

    def seen(**environment: str) -> list[str]:
        return list(nvml.uuids(CUDA_VISIBLE_DEVICES="0,2", **environment).values())

    assert seen(FAKE_CUDA=fastest_first) == [B, C]
    assert seen(FAKE_CUDA=fastest_first, CUDA_DEVICE_ORDER="PCI_BUS_ID") == [A, C]

    answer = nvml.devices(environment={"CUDA_VISIBLE_DEVICES": "0,2"})  # CUDA does not answer
    assert [one["uuid"] for one in answer.result] == [A, C]
    assert "cuInit: error 100" in answer.log[0]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in answer.log[0]


def test_equal_gpus_need_not_be_asked_for_their_order(nvml: NvmlWorker) -> None:
    nvml.script(*THREE)
    answer = nvml.devices(environment={"CUDA_VISIBLE_DEVICES": "2,0"})
    assert [one["uuid"] for one in answer.result] == [C, B]
    assert answer.log == []


# No driver


def test_without_a_driver_there_is_no_gpu_and_no_alarm(nvml: NvmlWorker) -> None:
    nvml.script(f"init {DRIVER_NOT_LOADED}", *THREE)
    answer = nvml.devices()
    assert answer.result == []
    assert [line.partition(" ")[0] for line in answer.log] == ["INFO"]


@pytest.mark.parametrize("code", [NO_PERMISSION, MISMATCH, 999, 12345])
def test_a_driver_that_refuses_is_reported(nvml: NvmlWorker, code: int) -> None:
    nvml.script(f"init {code}", *THREE)
    answer = nvml.devices()
    assert answer.result == []
    (line,) = answer.log
    assert line.startswith("WARNING the NVIDIA driver does not list its GPUs")


def test_without_the_library_there_is_no_gpu_and_no_alarm(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library at all")  # found before a real one
    worker = NvmlWorker(tmp_path)
    try:
        answer = worker.devices()
    finally:
        worker.close()
    assert answer.result == []
    assert [line.partition(" ")[0] for line in answer.log] == ["INFO"]


def test_no_engine_for_gpus_means_no_question(nvml: NvmlWorker) -> None:
    nvml.script("init 999", *THREE)
    answer = nvml.devices(backends=["cpu"])
    assert (answer.result, answer.log) == ([], [])


# What is used, and by whom


def test_children_and_strangers_are_told_apart(nvml: NvmlWorker, root: Root) -> None:
    root.process(CHILD)
    root.process(CHILD + 1, parent=CHILD)  # what a wrapper script started
    nvml.script(
        gpu(A, "01", used=15 * GIB),
        gpu(B, "02", used=2 * GIB),
        f"proc 0 {CHILD + 1} {9 * GIB} CG",  # computes and draws: listed twice, held once
        f"proc 0 {OTHER} {4 * GIB} C",
        f"proc 1 {CHILD} {GIB} C",
    )
    nvml.watch(root.path)
    sample = nvml.read(CHILD)
    pools = sample["measurement"]["pools"]
    assert pools["CUDA0"] == {
        "total": 24 * GIB,
        "used": 15 * GIB,
        "ours": 9 * GIB,
        "strangers": 6 * GIB,
    }
    assert pools["CUDA1"]["strangers"] == GIB
    assert (pools["host"]["ours"], pools["host"]["strangers"]) == (0, 24 * GIB)
    assert sample["held"] == {str(CHILD): {"CUDA0": 9 * GIB, "CUDA1": GIB, "host": 0}}


def test_a_dead_child_holds_nothing_but_its_bytes_may_come_back_late(
    nvml: NvmlWorker, root: Root
) -> None:
    root.process(CHILD)
    nvml.script(gpu(A, "01", used=10 * GIB), f"proc 0 {CHILD} {8 * GIB} C")
    nvml.watch(root.path)
    assert nvml.pool("CUDA0", CHILD) == (10, 8, 2)
    root.end(CHILD)
    nvml.script(gpu(A, "01", used=10 * GIB))  # gone from the list, not yet from the card
    assert nvml.pool("CUDA0") == (10, 0, 10)
    nvml.script(gpu(A, "01", used=2 * GIB))
    assert nvml.pool("CUDA0") == (2, 0, 2)


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
def test_a_hidden_process_list_makes_ours_unknown(nvml: NvmlWorker, root: Root, code: int) -> None:
    root.process(CHILD)
    nvml.script(gpu(A, "01", used=10 * GIB, list=code))
    nvml.watch(root.path)
    assert nvml.pool("CUDA0", CHILD) == (10, None, None)
    assert nvml.pool("CUDA0") == (10, 0, 10)  # nothing is ours when there is no child
    assert "CUDA0" not in nvml.read(CHILD)["held"][str(CHILD)]


def test_an_unknown_size_of_ours_is_not_zero(nvml: NvmlWorker, root: Root) -> None:
    root.process(CHILD)
    nvml.script(gpu(A, "01", used=10 * GIB), f"proc 0 {CHILD} na C", f"proc 0 {OTHER} 5 C")
    nvml.watch(root.path)
    assert nvml.pool("CUDA0", CHILD) == (10, None, None)
    nvml.script(gpu(A, "01", used=10 * GIB), f"proc 0 {CHILD} {GIB} C", f"proc 0 {OTHER} na C")
    assert nvml.pool("CUDA0", CHILD) == (10, 1, 9)


def test_process_ids_of_the_host_mean_nothing_in_a_container(nvml: NvmlWorker, root: Root) -> None:
    root.container(True)
    root.process(CHILD)
    nvml.script(gpu(A, "01", used=10 * GIB))
    nvml.watch(root.path)
    assert nvml.pool("CUDA0", CHILD) == (10, None, None)  # an empty list: it hides our child

    host_ids = (f"proc 0 {CHILD} {GIB} C", f"proc 0 {OTHER} {9 * GIB} C")
    nvml.script(gpu(A, "01", used=10 * GIB), *host_ids)  # the number of our child by chance
    assert nvml.pool("CUDA0", CHILD) == (10, None, None)

    nvml.script(gpu(A, "01", used=10 * GIB), f"proc 0 {CHILD} {8 * GIB} C")  # translated for us
    assert nvml.pool("CUDA0", CHILD) == (10, 8, 2)


def test_a_failing_query_makes_only_that_pool_unreadable(nvml: NvmlWorker, root: Root) -> None:
    good, lost = gpu(A, "01", used=GIB), gpu(B, "02", used=GIB, ask=GPU_IS_LOST)
    nvml.script(good, gpu(B, "02", used=GIB))
    nvml.watch(root.path)
    nvml.script(good, lost)
    measurement = nvml.read()["measurement"]
    assert set(measurement["pools"]) == {"CUDA0", "host"}
    assert measurement["unreadable"] == {"CUDA1": "GPU is lost"}
    nvml.script(good, gpu(B, "02", used=3 * GIB))
    assert nvml.pool("CUDA1") == (3, 0, 3)


def test_an_unplugged_gpu_is_unreadable_until_it_is_back(nvml: NvmlWorker, root: Root) -> None:
    nvml.script(gpu(A, "01", used=GIB), gpu(B, "02", used=2 * GIB))
    nvml.watch(root.path)
    assert nvml.pool("CUDA0") == (1, 0, 1)
    nvml.script(gpu(A, "01", ask=GPU_IS_LOST), gpu(B, "02", used=2 * GIB))
    assert nvml.pool("CUDA0") is None
    nvml.script(gpu(B, "02", used=2 * GIB))  # the list closes up: B must not be taken for A
    assert nvml.pool("CUDA0") is None
    assert nvml.pool("CUDA1") == (2, 0, 2)
    nvml.script(gpu(B, "02", used=2 * GIB), gpu(A, "01", used=5 * GIB))
    assert nvml.pool("CUDA0") == (5, 0, 5)


def test_a_driver_loaded_anew_is_opened_anew(nvml: NvmlWorker, root: Root) -> None:
    nvml.script("driver 1", gpu(A, "01", used=GIB))
    nvml.watch(root.path)
    nvml.script("driver 1", f"init {DRIVER_NOT_LOADED}", gpu(A, "01", ask=DRIVER_NOT_LOADED))
    assert nvml.pool("CUDA0") is None
    nvml.script("driver 2", gpu(A, "01", used=2 * GIB))
    assert nvml.pool("CUDA0") == (2, 0, 2)
    nvml.script("driver 3", gpu(A, "01", used=3 * GIB))
    assert nvml.pool("CUDA0") is None
    assert nvml.pool("CUDA0") == (3, 0, 3)


def test_a_declared_gpu_is_not_watched_but_its_children_are(nvml: NvmlWorker, root: Root) -> None:
    root.process(CHILD)
    nvml.script(gpu(A, "01", used=9 * GIB), f"proc 0 {CHILD} {8 * GIB} C")
    nvml.devices(do="watch", root=root.path, declared={"CUDA0": 20 * GIB})
    sample = nvml.read(CHILD)
    assert set(sample["measurement"]["pools"]) == {"host"}
    assert sample["held"][str(CHILD)]["CUDA0"] == 8 * GIB


def test_mig_instances_are_read_by_themselves(nvml: NvmlWorker, root: Root) -> None:
    nvml.script(
        gpu(A, "01", mig=1, used=20 * GIB),
        gpu("MIG-1111", "01", total=10 * GIB, used=3 * GIB).replace("gpu ", "mig 0 "),
    )
    nvml.watch(root.path)
    assert nvml.pool("CUDA0") == (3, 0, 3)


def test_an_old_driver_lists_processes_too(tmp_path: Path, root: Root) -> None:
    build_library("fake_nvml.c", tmp_path / "libnvidia-ml.so.1", "-DOLD_DRIVER")
    worker = NvmlWorker(tmp_path)
    try:
        root.process(CHILD)
        worker.script(gpu(A, "01", used=9 * GIB), f"proc 0 {CHILD} {8 * GIB} C")
        worker.watch(root.path)
        assert worker.pool("CUDA0", CHILD) == (9, 8, 1)
    finally:
        worker.close()


# What engines list, and what the driver knows of it

RTX = "NVIDIA GeForce RTX 4090"
CARD = 24 * GIB
AS_CUDA_COUNTS = CARD - GIB // 2


def engine(view: str, *devices: tuple[str, str, int], **environment: str) -> dict[str, object]:
    return {"view": view, "devices": devices, "environment": environment}


def matched(nvml: NvmlWorker, *lists: dict[str, object]) -> dict[str, tuple[str | None, ...]]:
    """Return name -> (source, UUID, within)."""
    found = nvml.devices(backends=(), lists=lists).result
    return {one["id"]: (one["source"], one["uuid"], one["within"]) for one in found}


def test_listed_devices_have_the_figures_of_their_cards(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "41", name="T400", used=GIB), gpu(B, "0a", name="H100", used=2 * GIB))
    cuda = engine(
        "cuda", ("CUDA0", "NVIDIA H100", AS_CUDA_COUNTS), ("CUDA1", "NVIDIA T400", AS_CUDA_COUNTS)
    )
    assert matched(nvml, cuda) == {"CUDA0": ("nvml", B, None), "CUDA1": ("nvml", A, None)}


def test_one_card_under_two_engines_counts_once(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "41", name="T400"), gpu(B, "0a", name="H100"))
    cuda = engine("cuda", ("CUDA0", "NVIDIA H100", AS_CUDA_COUNTS))
    vulkan = engine("vulkan", ("Vulkan0", "NVIDIA H100", CARD), ("Vulkan1", "NVIDIA T400", CARD))
    assert matched(nvml, cuda | {"environment": {"CUDA_VISIBLE_DEVICES": B}}, vulkan) == {
        "CUDA0": ("nvml", B, None),
        "Vulkan0": ("nvml", "0", "CUDA0"),
        "Vulkan1": ("nvml", "1", None),
    }


def test_a_card_that_the_list_does_not_have_is_no_device(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "41", name="T400"), gpu(B, "0a", name="H100"))
    assert matched(nvml, engine("cuda")) == {}


def test_listed_devices_that_no_card_agrees_with_are_not_measured(nvml: NvmlWorker) -> None:
    nvml.script(gpu(A, "41", name="T400"))
    one = engine("cuda", ("CUDA0", "NVIDIA H100", AS_CUDA_COUNTS))
    assert matched(nvml, one) == {"CUDA0": ("engine", None, None)}
    two = engine("v", ("Vulkan0", "NVIDIA T400", CARD), ("Vulkan1", "NVIDIA T400", CARD))
    assert matched(nvml, two) == {
        "Vulkan0": ("engine", None, None),
        "Vulkan1": ("engine", None, None),
    }
