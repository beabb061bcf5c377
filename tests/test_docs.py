"""The documents say what is so: commands parse, configurations validate, Python runs, links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from safetensors.torch import load_file

import vispeft
from vispeft.cli.app import app
from vispeft.config import Config, load_config, parse_config
from vispeft.config.messages import known_keys
from vispeft.config.strict_yaml import parse_yaml
from vispeft.models import bundled_path, load_bundled
from vispeft.models.roles.eomt import EOMT, decoder_roles
from vispeft.models.roles.mask_dino import MASK_DINO
from vispeft.models.roles.timm import FAMILIES
from vispeft.models.roles.transformers import ENCODERS, MODELS
from vispeft.peft import METHODS
from vispeft.peft.targets import NORMS
from vispeft.sweep import load_sweep

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/guide.md", "docs/methods.md", "docs/data.md"),
    *("docs/adapters.md", "docs/sweeps.md", "docs/evaluation.md", "docs/results.md", "docs/base.md", "docs/study.md"),
    *("docs/peft-library.md", "docs/images-and-classes.md", "docs/models.md", "docs/zoo.md", "docs/tasks.md"),
)
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*.yaml"))
ENCODER_ROLES = {f"encoder.{role}": "" for family in FAMILIES.values() for role in family}
TRANSFORMERS_ROLES = {role for tables in (ENCODERS, MODELS) for patterns in tables.values() for role in patterns}
ROLES = {"new", *MASK_DINO, *EOMT, *ENCODER_ROLES, *decoder_roles(ENCODER_ROLES, 1), *TRANSFORMERS_ROLES}
FILE_ENDINGS = (".yaml", ".json", ".png", ".safetensors")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    """The fenced blocks of a page in any of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def command_lines() -> Iterator[Any]:
    """Each `vispeft ...` line of the shell blocks and of the recipes' first comments, continued lines joined."""
    sources = [(page, "\n".join(blocks(page, "sh"))) for page in PAGES]
    sources += [(page, re.sub(r"^# *", "", text_of(page), flags=re.MULTILINE)) for page in RECIPES]
    for page, text in sources:
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            if line.startswith("vispeft "):
                yield pytest.param(line, id=f"{page}: {line}"[:110])


def inline_codes() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        plain = re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
        yield from ((page, " ".join(code.split())) for code in re.findall(r"`([^`]+)`", plain))


def parsed(words: list[str]) -> dict[str, Any]:
    """Arguments and options of a command line; raises what the command line raises on wrong usage."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    params: dict[str, Any] = command.make_context(command.name, words).params
    return params


def slugs(page: str) -> set[str]:
    """The anchors that a page's headings get."""
    titles = re.findall(r"^#+ (.+)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("line", list(command_lines()))
def test_commands__parse_and_their_overrides_validate(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    is_sweep = words[0] == "sweep"
    params = parsed(words)
    overrides = list(params.get("overrides") or [])
    config = params.get("config")
    if is_sweep:
        load_sweep(ROOT / params["config"], overrides)
    elif config is not None and config.parts[0] == "configs":
        load_config(ROOT / config, overrides)
    else:
        parse_config({}, overrides)


def test_commands__are_found_at_all() -> None:
    assert len(list(command_lines())) > 30


def test_commands__named_in_running_text_exist() -> None:
    for _, code in inline_codes():
        if code.startswith("vispeft "):
            words, command = code.split()[1:], typer.main.get_command(app)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)] if words else None


def test_settings__in_running_text_validate() -> None:
    found = []
    for _, code in inline_codes():
        if re.match(r"(model|peft|data|train|loss|eval)\.[a-z_.]+=", code):
            words = re.split(r" (?=[a-z_]+\.[a-z_.]+=)", code)
            parse_config({}, [re.sub(r"=PATH$", "=path", word) for word in words])
            found += words
    assert len(found) > 10


def test_keys__in_running_text_exist() -> None:
    known = set(known_keys(Config))
    for page, code in inline_codes():
        is_key = re.fullmatch(r"(model|peft|data|train|loss|eval)\.[a-z_.]+", code)
        if is_key and not code.endswith(FILE_ENDINGS):
            assert code in known, f"{page} names the key {code}"


@pytest.mark.parametrize("page", PAGES)
def test_configurations__validate(page: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"block_{number}.yaml"
        path.write_text(block)
        if "sweep" in parse_yaml(block, page):
            load_sweep(path)
        else:
            load_config(path)


@pytest.mark.parametrize("page", [*PAGES, *RECIPES])
def test_roles__exist(page: str) -> None:
    python = [re.sub(r"^ *@.*$", "", block, flags=re.MULTILINE) for block in blocks(page, "python")]  # no decorators
    code = "\n".join([*re.findall(r"`([^`\n]+)`", text_of(page)), *blocks(page, "yaml", "sh"), *python])
    code = text_of(page) if page.endswith(".yaml") else code
    for role in re.findall(r"(?<![\w/])@([a-z_.]*[a-z_0-9])", code):
        assert role in ROLES or role in ("role", NORMS), f"{page} names the role @{role}"


@pytest.mark.parametrize(
    "page", ["README.md", "docs/guide.md", "docs/methods.md", "docs/evaluation.md", "docs/adapters.md"]
)
def test_python__runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python"), start=1):
        code = compile(block, f"{page}, Python block {number}", "exec")
        needs_bundled = "load_bundled" in block and not bundled_path().is_file()
        if "runs/" not in block and not needs_bundled:
            exec(code, names)


def test_base__is_as_large_and_precise_as_its_page_says() -> None:
    state = load_file(bundled_path())
    (dtype,) = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    # the statistics of batch norms are no parameters
    number = sum(p.numel() for p in load_bundled().parameters())
    text = " ".join(text_of("docs/base.md").split())
    assert f"{number / 1e6:.1f} million parameters, {bundled_path().stat().st_size / 1e6:.1f} MB of {dtype}." in text


def test_python__names_public_functions_only() -> None:
    for page in PAGES:
        for name in re.findall(r"\bvp\.([A-Za-z_]\w*)", text_of(page)):
            assert name in vispeft.__all__, f"{page} names vp.{name}"


def test_methods__are_all_described() -> None:
    titles = slugs("docs/methods.md")
    assert titles.issuperset(METHODS)


def test_make__has_the_targets_that_are_named() -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), re.MULTILINE))
    for page in PAGES:
        code = "\n".join([*blocks(page, "sh"), *re.findall(r"`([^`\n]+)`", text_of(page))])
        named = re.findall(r"(?:^|\s)make ([a-z]+)", code, re.MULTILINE)
        assert targets.issuperset(named), f"{page} names a target that Makefile lacks"


@pytest.mark.parametrize("page", PAGES)
def test_links__lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), f"{page} links {target}"
        if anchor:
            assert anchor in slugs(linked.relative_to(ROOT).as_posix()), f"{page} links {target}"
