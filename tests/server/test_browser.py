"""The page in a real browser, over a real engine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from sgjax_server.app import create_app
from sgjax_server.config import ServerConfig
from sgjax_server.host import EngineHost
from sgjax_server.local_engine import LocalEngine

import sgjax

from ..serving import served_app
from .chromium import EXECUTABLE, Page, browser
from .fakes import FakeEngine

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed")

KEY = "open sesame"
LAST_RECEIPT = "[...document.querySelectorAll('.receipt')].at(-1)?.innerText"


@pytest.fixture(scope="module")
def url(embedded_model_path: Path) -> Iterator[str]:
    engine = sgjax.Engine(
        str(embedded_model_path),
        dtype="float32",  # in bfloat16 the first token is nearly a tie
        context_length=1024,
        max_running_requests=4,
        max_total_tokens=1024,
        chunked_prefill_size=128,
        skip_warmup=True,
    )
    with served_app(create_app(EngineHost(LocalEngine(engine)), ServerConfig(api_key=KEY))) as url:
        yield url


@pytest.fixture(scope="module")
def chromium(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Ends before the server, which would wait for who watches."""
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium: Page, url: str) -> Page:
    """The page, wide, fresh, with the key given."""
    chromium.resize(1440, 900)
    chromium.open(f"{url}/health")  # a document of the same origin, to put the key where the page looks for it
    chromium.run(f"sessionStorage.setItem('sgjax-api-key', {KEY!r})")
    chromium.open(f"{url}/")
    chromium.wait_for("document.querySelector('#model').innerText")
    chromium.errors.clear()
    return chromium


def say(page: Page, text: str) -> None:
    page.run("document.querySelector('#prompt').focus()")
    page.type(text)
    page.press("Enter", 13)


def ask(page: Page, text: str) -> str:
    """The answer's text, when it is complete."""
    num_answers = page.run("document.querySelectorAll('.turn.assistant').length")
    say(page, text)
    page.wait_for(f"document.querySelectorAll('.receipt').length > {num_answers} && {LAST_RECEIPT}", 120)
    return page.run("[...document.querySelectorAll('.answer')].at(-1).innerText")


def set_field(page: Page, name: str, value: str) -> None:
    page.run(f"document.querySelector('[name={name}]').value = {value!r}")


def test_the_key_is_asked_for_and_kept(chromium: Page, url: str):
    chromium.open(f"{url}/health")
    chromium.run("sessionStorage.clear()")
    chromium.open(f"{url}/")
    chromium.wait_for("document.querySelector('#key-dialog').open")
    chromium.type("wrong")
    chromium.press("Enter", 13)
    chromium.wait_for("document.querySelector('#key-dialog').open && document.querySelector('#key').value === ''")
    chromium.type(KEY)
    chromium.press("Enter", 13)
    chromium.wait_for("document.querySelector('#model').innerText.startsWith('SmolLM2')")
    assert not chromium.run("document.querySelector('#key-dialog').open")


def test_a_conversation(page: Page):
    set_field(page, "temperature", "0")
    assert ask(page, "What is the capital of France?") == "The capital of France is Paris."
    assert "8 tokens" in page.run(LAST_RECEIPT)
    assert "prompt: 0 cached, 37 computed" in page.run(LAST_RECEIPT)
    ask(page, "And of Italy?")
    assert "prompt: 32 cached" in page.run(LAST_RECEIPT) or "prompt: 48 cached" in page.run(LAST_RECEIPT)
    page.run("[...document.querySelectorAll('button')].findLast((b) => b.innerText === 'Regenerate').click()")
    page.wait_for("document.querySelectorAll('.receipt').length === 2")
    page.run("[...document.querySelectorAll('button')].find((b) => b.innerText === 'Edit').click()")
    page.run("document.activeElement.select()")
    page.type("What is the capital of Spain?")
    page.press("Enter", 13)
    page.wait_for(f"document.querySelectorAll('.turn').length === 2 && {LAST_RECEIPT}")
    assert page.text(".turn.user .text") == "What is the capital of Spain?"
    assert page.text(".answer")
    assert page.errors == []


def test_stop_frees_the_request(page: Page):
    set_field(page, "max_tokens", "900")
    page.run("location.hash = '#/both'")
    say(page, "Tell me everything about the sea, at length, in many chapters.")
    page.wait_for("document.querySelector('.answer')?.innerText.length > 20", 60)
    page.wait_for("document.querySelector('#tiles dd').innerText === '1'")
    page.press("Escape", 27)
    page.wait_for("document.querySelector('.turn.assistant .tools').innerText.includes('stopped')")
    page.wait_for("document.querySelector('#tiles dd').innerText === '0'")
    assert page.errors == []


def test_an_error_is_shown_where_it_belongs(page: Page):
    page.run("location.hash = '#/both'")
    set_field(page, "top_p", "3")
    say(page, "Hello")
    page.wait_for("document.querySelector('[name=top_p][aria-invalid]')")
    assert page.run("document.activeElement.name") == "top_p"
    assert page.text("#top_p-error") == page.text(".turn .error").removeprefix("top_p: ") != ""
    set_field(page, "top_p", "")
    set_field(page, "response_format", "{")
    say(page, "Hello")
    page.wait_for("document.querySelector('[name=response_format][aria-invalid]')")
    assert "is not JSON" in page.text("#response_format-error")


def test_an_answer_that_follows_a_schema(page: Page):
    schema = '{"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"]}'
    set_field(page, "response_format", schema)
    assert ask(page, "The capital of France?").replace(" ", "") == '{"city":"Paris"}'


def test_copied_as_curl(page: Page):
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text }")
    set_field(page, "seed", "7")
    set_field(page, "system", "It's short.")
    page.run("document.querySelector('#prompt').focus()")
    page.type("Isn't it?")
    page.run("document.querySelector('#copy-curl').click()")
    page.wait_for("document.querySelector('#copy-curl').innerText === 'Copied'")
    command = page.run("window.copied")
    assert KEY not in command
    curl, address, *options = shlex.split(command.replace("\\\n", ""))
    assert (curl, address.partition("/v1")[2]) == ("curl", "/chat/completions")
    assert "Authorization: Bearer $SGJAX_API_KEY" in options
    body = json.loads(options[-1])
    assert [message["content"] for message in body["messages"]] == ["It's short.", "Isn't it?"]
    assert (body["seed"], body["stream"]) == (7, True)


def test_a_receipt_says_all_when_it_is_opened(page: Page):
    set_field(page, "max_tokens", "2")
    ask(page, "What is the capital of Norway?")
    page.run("document.querySelector('.cost').open = true")
    assert "the last one, always computed" in page.text(".cost dl")


def test_reasoning_is_folded(chromium: Page):
    fake = FakeEngine("<think>Two and two.</think>It is four.")
    with served_app(create_app(EngineHost(fake), ServerConfig(reasoning_parser="qwen3"))) as url:  # type: ignore[arg-type]
        chromium.open(f"{url}/#/chat")
        chromium.wait_for("document.querySelector('#model').innerText")
        assert ask(chromium, "Two and two?") == "It is four."
        assert chromium.text(".turn.assistant details:not([hidden]) > summary") == "Thoughts"
        assert chromium.run("document.querySelector('.turn.assistant details').open") is False
        assert chromium.run("document.querySelector('.turn.assistant details .text').textContent") == "Two and two."
        chromium.open("about:blank")


def test_the_tree_is_drawn_and_walked(page: Page):
    page.run("location.hash = '#/both'")
    set_field(page, "max_tokens", "4")
    set_field(page, "system", "You are a librarian who knows every book there is, and where it stands.")
    ask(page, "What is a whale?")
    page.run("document.querySelector('#clear').click()")
    ask(page, "What is a radix tree, and who needs one?")
    node = "[...document.querySelectorAll('#tree [role=treeitem]')].find((n) => n.innerText.includes('librarian'))"
    page.wait_for(f"{node}?.innerText.startsWith('16')")
    page.run(f"{node}.focus()")
    page.wait_for("document.querySelector('#tree-detail').innerText.includes('found 1 time')")
    page.press("ArrowRight", 39)
    assert page.run(f"document.activeElement !== {node} && document.activeElement.getAttribute('role')") == "treeitem"
    page.press("ArrowLeft", 37)
    assert page.run(f"document.activeElement === {node}")
    assert page.errors == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("width", "view"), [(1440, "both"), (1000, "live"), (1000, "chat"), (390, "live"), (390, "chat")]
)
def test_nothing_is_wider_than_the_window(page: Page, width: int, view: str, dark: bool):
    page.resize(width, 800, dark=dark)
    page.run(f"location.hash = '#/{view}'")
    page.wait_for(f"document.body.dataset.view === {view!r}")
    overflowing = (
        "[...document.querySelectorAll('body, main, section, .panel, #composer, #conversation')]"
        ".filter((e) => e.clientWidth && e.scrollWidth > e.clientWidth + 1).map((e) => e.id || e.tagName)"
    )
    assert page.run(overflowing) == []
    background = page.run("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(22, 24, 27)" if dark else "rgb(246, 245, 241)")
