"""The server as clients meet it: through the openai package, and over bare connections that break."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from tsconvert.quant.export import ExportConfig, export_unverified
from tsconvert.runner.console import RunConfig, run
from tsconvert.runner.conversation import Conversation
from tsconvert.runner.model import load
from tsconvert.runner.sampling import Sampling

openai = pytest.importorskip("openai", reason="pip install openai")

from tsconvert.runner.serve.engine import reusable  # noqa: E402

GREEDY = {"temperature": 0, "extra_body": {"ignore_eos": True}}
ASK = [{"role": "user", "content": "Who is there?"}]


@pytest.fixture
def client(served) -> Iterator:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def said_by_run(file: Path, prompt: str, tokens: int, **options: object) -> str:
    return run(RunConfig(file=file, prompt=prompt, tokens=tokens, temp=0, ignore_eos=True, threads=1, **options)).text


def test_a_completion_is_what_run_says(client, file: Path):
    found = client.completions.create(model="any", prompt="The people of", max_tokens=12, **GREEDY)
    assert found.choices[0].text == said_by_run(file, "The people of", 12)
    assert found.choices[0].finish_reason == "length"
    assert (found.object, found.model) == ("text_completion", "tiny")
    with load(file, threads=1) as model:
        assert found.usage.prompt_tokens == len(model.tokenizer.encode("The people of"))
    assert (found.usage.completion_tokens, found.usage.total_tokens) == (12, found.usage.prompt_tokens + 12)


def test_a_chat_is_what_run_chat_says_streamed_and_whole(client, file: Path):
    whole = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=12, **GREEDY)
    right = said_by_run(file, "Who is there?", 12, chat=True)
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", right)
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ASK, max_completion_tokens=12, stream=True, stream_options={"include_usage": True},
            **GREEDY,
        )
    )  # fmt: skip
    deltas = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert deltas[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in deltas) == right
    assert [choice.finish_reason for choice in deltas if choice.finish_reason] == ["length"]
    assert len(deltas) > 6
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_conversation_goes_on_as_run_chat_does(client, file: Path):
    """The second turn says what it says after the first in one model, which reads only what is new."""
    with load(file, threads=1) as model:
        talk = Conversation(model=model)
        for text in ("Who is there?", "And who else?"):
            answer = talk.ask(text, limit=8, stop_at_eos=False)
            list(answer)
            talk.keep(answer)
        first = model.generate("The people of the", limit=8, stop_at_eos=False)
        list(first)
        more = [*first.prompt, *first.tokens, 50, 60, 70]
        held = first.held
        second = model.generate(more, limit=8, stop_at_eos=False, cached=held)
        list(second)
    messages = list(ASK)
    for turn in talk.turns:
        found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, **GREEDY)
        assert found.choices[0].message.content == turn.text
        messages.append({"role": "assistant", "content": turn.text})
        messages.append({"role": "user", "content": [{"type": "text", "text": "And who else?"}]})
    client.completions.create(model="tiny", prompt=list(first.prompt), max_tokens=8, **GREEDY)
    found = client.completions.create(model="tiny", prompt=more, max_tokens=8, **GREEDY)
    assert found.choices[0].text == second.text
    assert found.usage.prompt_tokens_details.cached_tokens == len(held)


def test_a_shared_beginning_is_not_read_again_and_changes_no_bit(client, file: Path, served):
    beginning = "It is the people of the United States who made the union so. " * 12
    for end in ("One", "Two of them", "One"):
        found = client.completions.create(model="tiny", prompt=beginning + end, max_tokens=8, **GREEDY)
        assert found.choices[0].text == said_by_run(file, beginning + end, 8)
    with load(file, threads=1) as model:
        prompt = model.tokenizer.encode(beginning + "One")
        assert len(prompt) - 12 < found.usage.prompt_tokens_details.cached_tokens <= len(prompt) - 2
        log_V = model.feed(prompt).astype(np.float64)
        log_V -= np.log(np.exp(log_V - log_V.max()).sum()) + log_V.max()
    for _ in range(2):
        found = client.completions.create(model="tiny", prompt=beginning + "One", max_tokens=1, logprobs=1, **GREEDY)
        assert found.choices[0].logprobs.token_logprobs[0] == pytest.approx(log_V.max(), abs=1e-12)


@pytest.mark.parametrize("sparsity", ["exact", "dense"])
def test_what_is_kept_of_a_prompt_changes_no_bit(file: Path, sparsity: str):
    """For prompts of all lengths around those of a block, where one token may be left to read alone."""
    numbers = np.random.default_rng(0)
    with load(file, threads=1, mode=sparsity) as model:
        tokens = numbers.integers(3, 4096, 140).tolist()
        for held, size in ((140, 140), (129, 129), (130, 129), (128, 129), (60, 129), (140, 130), (2, 131), (140, 1)):
            prompt = tokens[:size]
            model.reset()
            right = model.feed(prompt)
            model.reset()
            model.feed(tokens[:held])
            known = reusable(tokens[: held - (held % 128 == 1)], prompt)
            assert known < size
            model.reset(known)
            assert np.array_equal(model.feed(prompt[known:]), right), (held, size)


def test_a_ring_that_has_lost_what_is_looked_back_at_is_read_again(make_sparse: Callable, tmp_path: Path):
    export_unverified(ExportConfig(model=make_sparse(sliding_window=16), out=tmp_path / "m.gguf", type_name="Q8_0"))
    tokens = np.random.default_rng(0).integers(3, 4096, 200).tolist()
    with load(tmp_path / "m.gguf", threads=1) as model:
        model.feed(tokens[:20])
        right = model.feed(tokens[20:25])
        for read, position in ((30, 20), (149, 20), (150, 0), (200, 0)):
            model.reset()
            model.feed(tokens[:read])
            model.reset(20)
            assert model.position == position
            assert np.array_equal(model.feed(tokens[model.position : 25]), right)


def test_stop_strings_and_seeds(client, file: Path):
    free = client.completions.create(model="tiny", prompt="The", max_tokens=16, **GREEDY).choices[0].text
    stop = free[5:8]
    found = client.completions.create(model="tiny", prompt="The", max_tokens=16, stop=stop, **GREEDY).choices[0]
    assert (found.text, found.finish_reason) == (free[: free.index(stop)], "stop")
    found = client.completions.create(model="tiny", prompt="The", max_tokens=16, stop=["\x01", stop], **GREEDY).choices[
        0
    ]
    assert found.text == free[: free.index(stop)]

    def drawn(**options: object) -> list[str]:
        hot = {"temperature": 2, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
        found = client.completions.create(model="tiny", prompt="The", **hot, **options)
        return [choice.text for choice in found.choices]

    assert drawn(seed=5) == drawn(seed=5)
    three = drawn(seed=5, n=3)
    assert three == [*drawn(seed=5), *drawn(seed=6), *drawn(seed=7)]
    assert len(set(three)) == 3
    with load(file, threads=1) as model:
        own = model.generate("The", limit=8, sampling=Sampling(temperature=2, seed=5), stop_at_eos=False)
        list(own)
    assert three[0] == own.text


def test_log_probabilities_are_the_model_s(client, file: Path):
    prompt = "The people of the United States"
    found = client.completions.create(model="t", prompt=prompt, max_tokens=3, logprobs=2, echo=True, **GREEDY).choices[
        0
    ]
    assert found.text.startswith(prompt)
    with load(file, threads=1) as model:
        tokens = model.tokenizer.encode(prompt)
        assert found.logprobs.token_logprobs[0] is None
        right = log_softmax(model.logits(tokens)[:-1], axis=-1)[range(len(tokens) - 1), tokens[1:]]
        assert found.logprobs.token_logprobs[1 : len(tokens)] == pytest.approx(right.tolist(), abs=1e-4)
        assert "".join(found.logprobs.tokens[1 : len(tokens)]).strip() == prompt
    assert len(found.logprobs.tokens) == len(tokens) + 3
    assert found.logprobs.text_offset == [
        sum(map(len, found.logprobs.tokens[:i])) for i in range(len(found.logprobs.tokens))
    ]
    for token, logprob, top in list(
        zip(found.logprobs.tokens, found.logprobs.token_logprobs, found.logprobs.top_logprobs, strict=True)
    )[len(tokens) :]:
        assert len(top) == 2
        assert max(top, key=top.get) == token
        assert top[token] == logprob
    chat = client.chat.completions.create(
        model="t", messages=ASK, max_tokens=3, logprobs=True, top_logprobs=4, **GREEDY
    ).choices[0]
    assert "".join(bytes(each.bytes).decode("utf-8", "replace") for each in chat.logprobs.content).strip() in (
        chat.message.content.strip()
    )
    assert all(
        each.logprob == each.top_logprobs[0].logprob and len(each.top_logprobs) == 4 for each in chat.logprobs.content
    )
    streamed = client.chat.completions.create(
        model="t", messages=ASK, max_tokens=3, logprobs=True, top_logprobs=4, stream=True, **GREEDY
    )
    entries = [
        e for chunk in streamed for e in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else [])
    ]
    assert entries == chat.logprobs.content


def test_several_prompts_and_tokens(client, file: Path):
    with load(file, threads=1) as model:
        tokens = [model.tokenizer.encode(text) for text in ("One", "Two")]
    texts = client.completions.create(model="t", prompt=["One", "Two"], max_tokens=4, n=2, **GREEDY)
    ids = client.completions.create(model="t", prompt=tokens, max_tokens=4, **GREEDY)
    assert [choice.index for choice in texts.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in texts.choices[::2]] == [choice.text for choice in ids.choices]
    assert texts.choices[0].text == texts.choices[1].text == said_by_run(file, "One", 4)
    nothing = client.completions.create(model="t", prompt="One", max_tokens=0, echo=True, logprobs=0)
    assert (nothing.choices[0].text, nothing.usage.completion_tokens) == ("One", 0)


def test_models_and_health(client, served):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tsconvert"
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-4' does not exist; there is tiny"):
        client.models.retrieve("gpt-4")
    assert client._client.get(served.url.removesuffix("v1") + "health").json() == {"status": "ok"}


LONG = "word " * 600


@pytest.mark.parametrize(
    ("path", "body", "param", "message"),
    [
        ("completions", b"{", None, "the body is no JSON: EOF while parsing an object at line 1 column 1"),
        ("completions", b"[]", None, "the body is no JSON object"),
        ("completions", b'{"prompt": "\xff"}', None, "the body is no JSON: "),
        ("completions", {}, "prompt", "prompt: Field required"),
        ("completions", {"prompt": ""}, None, None),
        ("completions", {"prompt": []}, "prompt", "prompt: 0 prompts; give 1 to 64"),
        ("completions", {"prompt": [[]]}, "prompt", "prompt: no tokens; give some text"),
        ("completions", {"prompt": [1, 99_999]}, "prompt", "prompt: token 99999 is none of the model's 4096"),
        ("completions", {"prompt": [-1]}, "prompt", "prompt: token -1 is none of the model's 4096"),
        ("completions", {"prompt": LONG}, "prompt", "prompt: "),
        ("completions", {"prompt": "a", "n": 17}, "n", "n: Input should be less than or equal to 16"),
        ("completions", {"prompt": "a", "n": "1"}, "n", "n: Input should be a valid integer"),
        ("completions", {"prompt": "a", "max_tokens": -2}, "max_tokens", "max_tokens: Input should be greater than"),
        ("completions", {"prompt": "a", "temperature": -1}, "temperature", "temperature is -1.0: it must be 0 to 100"),
        ("completions", {"prompt": "a", "top_p": 2}, "top_p", "top_p is 2.0: it must be 0 to 1"),
        ("completions", {"prompt": "a", "foo": 1}, "foo", "unrecognized request argument: foo"),
        ("completions", {"prompt": "a", "presence_penalty": 0.5}, "presence_penalty", "presence_penalty: is not"),
        ("completions", {"prompt": "a", "logprobs": 21}, "logprobs", "logprobs: Input should be less than"),
        ("chat/completions", {"messages": []}, "messages", "messages: List should have at least 1 item"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content", "messages.0.content: Field"),
        ("chat/completions", {"messages": [{"role": "nobody", "content": "a"}]}, "messages",
         "the chat template refuses these messages (no nobody); change the messages"),
        ("chat/completions", {"messages": ASK, "top_logprobs": 2}, "top_logprobs", "top_logprobs: needs logprobs true"),
        ("chat/completions", {"messages": ASK, "tools": [{}]}, "tools", "tools: is not supported; leave it out"),
    ],
)  # fmt: skip
def test_bad_requests_are_told_in_the_api_s_form(client, served, path: str, body, param, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    found = client._client.post(f"{served.url}/{path}", content=content)
    if message is None:
        assert found.status_code == 200  # an empty text is BOS
        return
    assert found.status_code == 400
    error = found.json()["error"]
    assert error["message"].startswith(message)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert str(served.model.source.file.path) not in error["message"]


def test_unknown_urls_methods_and_bodies_that_are_too_long(client, served):
    for method, path, status in (("GET", "nope", 404), ("GET", "completions", 405)):
        found = client._client.request(method, f"{served.url}/{path}")
        assert found.status_code == status
        assert found.json()["error"]["type"] == "invalid_request_error"
    found = client._client.post(f"{served.url}/completions", content=b" " * ((16 << 20) + 1))
    assert found.status_code == 413
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="t", messages=[{"role": "user", "content": LONG}])
    assert caught.value.code == "context_length_exceeded"
    odd = client._client.post(f"{served.url}/completions", content=b'{"prompt": "a \\ud800 b", "max_tokens": 1}')
    assert odd.status_code in (200, 400)


def test_a_key(serving: Callable):
    with serving(key="secret") as served:
        for key in ("wrong", "sécret"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                openai.OpenAI(base_url=served.url, api_key=key, max_retries=0).models.list()
        with openai.OpenAI(base_url=served.url, api_key="secret", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["tiny"]
            assert client._client.get(served.url.removesuffix("v1") + "health").status_code == 200


def stream(served, tokens: int = 10_000) -> socket.socket:
    """A connection whose answer has begun."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    body = json.dumps({"prompt": "The", "max_tokens": tokens, "stream": True, "ignore_eos": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_beyond_the_queue_requests_are_told_to_try_later(serving: Callable):
    with serving(queue=1) as served, served.engine_held():
        waiting = [stream(served, 1) for _ in range(2)]
        wait_until(lambda: served.engine._asked == 2)
        with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            with pytest.raises(openai.InternalServerError) as caught:
                client.completions.create(model="t", prompt="a", max_tokens=1)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "1"
            assert caught.value.body["message"] == (
                "the server answers one request at a time and 1 are waiting; try again later"
            )
        for connection in waiting:
            connection.close()
        wait_until(lambda: served.engine._asked == 0)


def test_200_clients_come_and_go(serving: Callable, file: Path):
    """Half of them leave in the midst of it; the others get what run says, and nothing is left behind."""
    right = {prompt: said_by_run(file, prompt, 6) for prompt in ("The people", "The sea and", "Of all men")}
    with (
        serving(queue=200) as served,
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=300) as client,
    ):
        threads = threading.active_count()

        def one(number: int) -> bool:
            if number % 2:
                with stream(served) as connection:
                    if number % 4 == 1:
                        assert connection.recv(10)
                return True
            prompt = list(right)[number % 3]
            if number % 8 == 0:
                parts = client.completions.create(model="t", prompt=prompt, max_tokens=6, stream=True, **GREEDY)
                return "".join(part.choices[0].text for part in parts) == right[prompt]
            return (
                client.completions.create(model="t", prompt=prompt, max_tokens=6, **GREEDY).choices[0].text
                == right[prompt]
            )

        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(one, range(200)))
        wait_until(lambda: served.engine._asked == 0 and not served.web.server_state.tasks)
        assert not served.engine._turn.locked()
        assert threading.active_count() <= threads + 20  # the pools of asyncio and of the test
        assert (
            client.completions.create(model="t", prompt="The sea and", max_tokens=6, **GREEDY).choices[0].text
            == (right["The sea and"])
        )


@pytest.mark.slow
def test_memory_does_not_grow_over_a_thousand_requests(serving: Callable):
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with serving() as served, openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=60) as client:
        found = []
        for number in range(1200):
            if number % 10 == 9:
                stream(served).close()
            client.completions.create(
                model="t", prompt=f"{number} is a number", max_tokens=4, logprobs=5, echo=number % 2 == 0, **GREEDY
            )
            if number % 200 == 199:
                found.append(resident_bytes())
    assert found[-1] - found[0] < 8 << 20, found


def _heeds_ctrl_c() -> None:
    """Where the tests run in the background, SIGINT is ignored, and children would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_command(file: Path, tmp_path: Path):
    """It says where it listens, answers, and ends by Ctrl-C with 130."""
    command = [sys.executable, "-m", "tsconvert", "serve", str(file), "--port", "0", "-t", "1", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_heeds_ctrl_c
    ) as process:
        try:
            told = json.loads(process.stdout.readline())
            assert (told["model"], told["mode"], told["threads"]) == ("tiny", "exact", 1)
            with openai.OpenAI(base_url=told["url"] + "/v1", api_key="none", max_retries=0) as client:
                found = client.completions.create(model="t", prompt="The people", max_tokens=6, **GREEDY)
                assert found.choices[0].text == said_by_run(file, "The people", 6)
                taken = subprocess.run(
                    [*command[:5], "--port", told["url"].rpartition(":")[2]],
                    capture_output=True,
                    text=True,
                    check=False,
                )
            assert (taken.returncode, taken.stdout) == (2, "")
            assert taken.stderr.endswith(
                "cannot listen there (Address already in use); choose another port, or 0 for any\n"
            )
        finally:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
