# SPDX-License-Identifier: Apache-2.0
"""The built wheel, looked at from outside: what is in it, what it links to, which instructions it uses."""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch_abi_audit
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Symbol, SymbolTableSection

from tests.kit.alone import alone

ROOT = Path(__file__).resolve().parents[1]
OPERATORS = "libfastdiff.so"
MODULE = "_C.*.so"
LIBRARIES = [OPERATORS, MODULE]

# The C and C++ run-time libraries, which every Linux with Python has.
SYSTEM_LIBRARIES = re.compile(r"(libstdc\+\+|libgcc_s|libc|libm|libdl|libpthread|librt|ld-linux-.*)\.so\.\d+")
# What only libtorch_cuda, libcudart and libcuda have. (The number of the device type is in libtorch_cpu.)
CUDA_SYMBOL = re.compile(
    r"cuda[A-Z]\w+|cu[A-Z]\w+|aoti_torch_(?!device_type_)\w*cuda\w*|torch_c10_cuda\w+|_ZN3c104cuda\w+"
)
# Every AVX instruction is VEX or EVEX encoded, on xmm registers too, and is written with a leading v.
AVX_INSTRUCTION = re.compile(r"^\s+[0-9a-f]+:\s+(v[a-z0-9]+)\b", re.MULTILINE)


def build_hook(hook: str, folder: Path) -> Path:
    """Run a build hook of setuptools in this environment, as pip does, and return what it made."""
    call = f"import setuptools.build_meta as hooks; print(hooks.{hook}({str(folder)!r}))"
    with alone("hooks"):  # they write into the folder of the sources
        done = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that `make test` has built for this interpreter; where there is none, one built now."""
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    built = sorted(ROOT.glob(f"dist/torch_fastdiff-*-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    return built[-1] if built else build_hook("build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def sdist_names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a source distribution made now, relative to its top folder."""
    with tarfile.open(build_hook("build_sdist", tmp_path_factory.mktemp("sdist"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def setup_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fastdiff_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(unpacked: Path, pattern: str) -> Path:
    found = list((unpacked / "fastdiff").glob(pattern))
    assert len(found) == 1, f"{pattern}: expected one file, got {found}"
    return found[0]


def dynamic_tags(path: Path) -> dict[str, list[str]]:
    """The dynamic section: {"DT_NEEDED": ["libc.so.6"], "DT_FLAGS": ["8"]}."""
    tags: dict[str, list[str]] = {}
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynamic")
        assert isinstance(section, DynamicSection)
        for tag in section.iter_tags():
            text = tag.needed if tag.entry.d_tag == "DT_NEEDED" else str(tag.entry.d_val)
            tags.setdefault(tag.entry.d_tag, []).append(text)
    return tags


def symbols(path: Path, table: str) -> Iterator[Symbol]:
    with path.open("rb") as file:
        section = ELFFile(file).get_section_by_name(table)
        assert isinstance(section, SymbolTableSection), f"{path.name} has no {table}"
        yield from section.iter_symbols()


def is_defined(symbol: Symbol) -> bool:
    return bool(symbol.entry.st_shndx != "SHN_UNDEF")


# ---- what is in it ----------------------------------------------------------------------------------


def test_tag_is_that_of_the_interpreter(wheel: Path) -> None:
    # The pybind11 module fits one version of Python: a wider tag would be a lie.
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert re.fullmatch(rf"torch_fastdiff-[\d.]+-{tag}-{tag}-\w*linux\w*\.whl", wheel.name)


def test_every_python_file_is_in_the_wheel(unpacked: Path) -> None:
    package = {path.relative_to(ROOT / "python") for path in (ROOT / "python").rglob("*.py")}
    bench = {
        Path("fastdiff/bench") / path.relative_to(ROOT / "bench") for path in (ROOT / "bench").glob("*.py")
    }
    shipped = {path.relative_to(unpacked) for path in unpacked.rglob("*.py")}
    assert shipped == package | bench


@pytest.mark.parametrize(
    "name",
    [
        "py.typed",
        "cli/digits.safetensors",
        "libfastdiff.so",
        "bench/main.py",
        "../*.dist-info/licenses/LICENSE",
    ],
)
def test_data_file_is_in_the_wheel(unpacked: Path, name: str) -> None:
    assert list((unpacked / "fastdiff").glob(name)), f"{name} is missing"


def test_every_source_file_is_in_the_sdist(sdist_names: set[str]) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    # .gitignore is about working in the repository; a deleted file is listed until it is committed.
    sources = {name for name in listed.stdout.splitlines() if name != ".gitignore" and (ROOT / name).exists()}
    assert sources - sdist_names == set()


def test_nothing_built_is_in_the_sdist(sdist_names: set[str]) -> None:
    assert [name for name in sdist_names if name.endswith((".so", ".o", ".pyc")) or "_cache/" in name] == []


# ---- what it links to -------------------------------------------------------------------------------


def test_torch_is_used_through_the_stable_abi_of_2_11(unpacked: Path) -> None:
    torch = torch_abi_audit.inspect_extension(library(unpacked, OPERATORS)).torch
    assert torch.uses_torch
    assert torch.stable, f"outside the stable ABI: {torch.unstable_symbols}"
    assert list(torch.unknown_shim_symbols) == []
    assert torch.min_torch_version is not None
    assert tuple(int(part) for part in torch.min_torch_version.split(".")[:2]) <= (2, 11)


@pytest.mark.parametrize(("pattern", "torch_libraries"), [(OPERATORS, {"libtorch_cpu.so"}), (MODULE, set())])
def test_needed_libraries(unpacked: Path, pattern: str, torch_libraries: set[str]) -> None:
    needed = dynamic_tags(library(unpacked, pattern))["DT_NEEDED"]
    assert {name for name in needed if not SYSTEM_LIBRARIES.fullmatch(name)} == torch_libraries


@pytest.mark.parametrize("pattern", LIBRARIES)
def test_no_cuda_library_is_referenced(unpacked: Path, pattern: str) -> None:
    names = [s.name for s in symbols(library(unpacked, pattern), ".dynsym") if not is_defined(s)]
    assert [name for name in names if CUDA_SYMBOL.fullmatch(name)] == []


@pytest.mark.parametrize(
    ("pattern", "exported"), [(OPERATORS, r"fastdiff_\w+"), (MODULE, r"PyInit__C|fastdiff_\w+")]
)
def test_exports_nothing_that_could_clash(unpacked: Path, pattern: str, exported: str) -> None:
    names = [s.name for s in symbols(library(unpacked, pattern), ".dynsym") if is_defined(s) and s.name]
    assert [name for name in names if not re.fullmatch(exported, name)] == []


@pytest.mark.parametrize("pattern", LIBRARIES)
def test_no_path_of_the_build_machine(unpacked: Path, pattern: str) -> None:
    path = library(unpacked, pattern)
    assert not {"DT_RPATH", "DT_RUNPATH"} & set(dynamic_tags(path))
    contents = path.read_bytes()
    assert [folder for folder in (ROOT, Path(sys.prefix)) if str(folder).encode() in contents] == []


@pytest.mark.parametrize("pattern", LIBRARIES)
def test_is_hardened(unpacked: Path, pattern: str) -> None:
    path = library(unpacked, pattern)
    with path.open("rb") as file:
        segments = {segment.header.p_type: segment.header for segment in ELFFile(file).iter_segments()}
    executable = 1
    assert segments["PT_GNU_STACK"].p_flags & executable == 0
    assert "PT_GNU_RELRO" in segments
    bind_now = 8
    assert int(dynamic_tags(path)["DT_FLAGS"][0]) & bind_now


# ---- which instructions it uses ---------------------------------------------------------------------

needs_objdump = pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("objdump") is None, reason="for x86-64, with objdump"
)


def objects(folder_pattern: str) -> list[Path]:
    """What was compiled for the wheel: build/temp.*/CMakeFiles/<target>.dir/**/*.o."""
    version = f"{sys.version_info.major}{sys.version_info.minor}"
    folders = ROOT.glob(f"build/temp.*-cpython-{version}/CMakeFiles/{folder_pattern}.dir")
    found = [path for folder in folders for path in folder.rglob("*.o")]
    if not found:
        pytest.skip("the wheel was built elsewhere: its object files are not here")
    return found


def avx_instructions(path: Path) -> set[str]:
    text = subprocess.run(
        ["objdump", "--disassemble", "--no-show-raw-insn", path], check=True, capture_output=True, text=True
    )
    return set(AVX_INSTRUCTION.findall(text.stdout))


@needs_objdump
def test_baseline_units_have_no_avx() -> None:
    baseline = [path for path in objects("*") if not re.search(r"_(avx\w+|amx)\.dir/", path.as_posix())]
    assert {path.name: found for path in baseline if (found := avx_instructions(path))} == {}


@needs_objdump
@pytest.mark.parametrize("isa", ["avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx"])
def test_avx_units_have_avx(isa: str) -> None:
    # The disassembly is read correctly: it finds what is there. A room of whole numbers may have none.
    assert any(avx_instructions(path) for path in objects(f"fastdiff_cpu_{isa}"))


@pytest.mark.parametrize(
    ("isa", "number"),
    [("baseline", 0), ("avx2", 1), ("avx2_vnni", 2), ("avx512", 3), ("avx512_vnni", 4), ("amx", 5)],
)
def test_isa_units_share_no_function(isa: str, number: int) -> None:
    """Each defines the specialisations for its own ISA, and nothing that the linker could merge."""
    for path in objects(f"fastdiff_cpu_{isa}"):
        shared = [
            s for s in symbols(path, ".symtab") if is_defined(s) and s.entry.st_info.bind != "STB_LOCAL"
        ]
        assert shared, f"{path.name} defines nothing"
        assert [s.name for s in shared if f"3IsaE{number}E" not in s.name] == [], path
        assert {s.entry.st_info.bind for s in shared} == {"STB_GLOBAL"}, path


# ---- how it loads -----------------------------------------------------------------------------------


def run_python(code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd="/")


def test_module_imports_and_runs_without_torch(unpacked: Path) -> None:
    code = """
import importlib.util, sys
sys.modules["torch"] = None  # makes `import torch` fail
import numpy as np
spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
x, y = np.arange(4, dtype=np.float32), np.empty(4, np.float32)
module.linear_step([x], np.array([[2, 0, 0, 1, 5]], np.float32), [y])
print(module.facts()["version"], y.tolist())
"""
    done = run_python(code, library(unpacked, MODULE))
    assert done.returncode == 0, done.stderr
    version = re.search(r'__version__ = "(.+)"', (ROOT / "python/fastdiff/_version.py").read_text())
    assert version is not None
    assert done.stdout.split(maxsplit=1) == [version[1], "[1.0, 2.0, 4.0, 5.0]\n"]


def test_loading_a_second_copy_is_harmless(unpacked: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import fastdiff, torch
torch.ops.load_library(sys.argv[2])
x, table = torch.ones(4), torch.tensor([[2, 0, 0, -torch.inf, torch.inf]])
print(fastdiff.__file__, fastdiff.linear_step([x], table)[0].tolist())
"""
    copy = Path(shutil.copy(library(unpacked, OPERATORS), tmp_path / "copy.so"))
    done = run_python(code, unpacked, copy)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{unpacked}/fastdiff/__init__.py [2.0, 2.0, 2.0, 2.0]\n"


# ---- how it is built --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch_list", "expected"),
    [
        ("9.0a", "90a-real"),
        ("8.0 8.6", "80-real;86-real"),
        ("8.0;9.0a+PTX", "80-real;90a"),
        (" 10.0f ; 12.0f; ", "100f-real;120f-real"),
        ("8.0+PTX 8.0+PTX", "80"),
    ],
)
def test_arch_list_is_parsed(setup_module: ModuleType, arch_list: str, expected: str) -> None:
    assert setup_module.cmake_archs(arch_list) == expected


@pytest.mark.parametrize("nonsense", ["Hopper", "9", "90a", "9.0x", "9.0+ptx", "9.0,8.0"])
def test_nonsense_in_the_arch_list_is_named(setup_module: ModuleType, nonsense: str) -> None:
    with pytest.raises(
        SystemExit, match=re.escape(f"TORCH_CUDA_ARCH_LIST: {nonsense!r} is no compute capability")
    ):
        setup_module.cmake_archs(f"8.0 {nonsense}")


@pytest.mark.parametrize(
    ("variable", "value", "function"),
    [
        ("FASTDIFF_CUDA", "yes", "chosen_nvcc"),
        ("MAX_JOBS", "0", "job_count"),
        ("MAX_JOBS", "many", "job_count"),
    ],
)
def test_nonsense_in_a_variable_is_named(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, function: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"{variable} must be .* got '{value}'"):
        getattr(setup_module, function)()


def test_cuda_is_refused_clearly_where_it_is_wanted_but_missing(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_module, "find_nvcc", lambda: None)
    monkeypatch.delenv("FASTDIFF_CUDA", raising=False)
    assert setup_module.chosen_nvcc() is None
    monkeypatch.setenv("FASTDIFF_CUDA", "1")
    with pytest.raises(SystemExit, match="nvcc is not in CUDACXX"):
        setup_module.chosen_nvcc()
