"""What a mistake in a run file, or in an override, is called: where, which key, which value, the way out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gad.config.loading import load, parse
from gad.config.models import Full, Lora, Nf4, OwnDiscriminator
from gad.config.run import RunConfig
from gad.errors import ConfigError

BASE = """\
name: x
data:
  train: a.jsonl
student:
  model: m
"""


def refused(text: str, *overrides: str, base: str = BASE) -> list[str]:
    """The lines of the message."""
    with pytest.raises(ConfigError) as caught:
        parse(base + text, "run.yaml", overrides)
    assert caught.value.exit_code == 2
    return str(caught.value).splitlines()


def loaded(text: str, *overrides: str) -> RunConfig:
    return parse(BASE + text, "run.yaml", overrides)


MISTAKES = {
    "unknown key": ("sed: 1", "run.yaml:6: unknown key sed; did you mean seed?"),
    "unknown key of another case": ("Seed: 1", "run.yaml:6: unknown key Seed; did you mean seed?"),
    "unknown key in a section": (
        "adversarial:\n  epochs: 1\n  batchsize: 3",
        "run.yaml:8: unknown key adversarial.batchsize; did you mean batch_size?",
    ),
    "unknown key in a list": (
        "warmup:\n  phases:\n    - {train: both, epochs: 1}\n    - {train: both, step: 3}",
        "run.yaml:9: unknown key warmup.phases.1.step; did you mean steps?",
    ),
    "key of another section": (
        "max_reply_tokens: 5",
        "run.yaml:6: unknown key max_reply_tokens; did you mean prompt.max_reply_tokens?",
    ),
    "key of another kind": (
        "discriminator: {kind: shared, model: m}",
        "run.yaml:6: unknown key discriminator.model; it belongs to kind: own; here are: head_rate, kind, layer",
    ),
    "dotted key": (
        "compute.threads: 1",
        "run.yaml:6: unknown key compute.threads; write compute: threads on lines of their own, each further in",
    ),
    "wrong type": ("seed: abc", "run.yaml:6: seed should be a whole number (got 'abc')"),
    "fraction": ("seed: 1.5", "run.yaml:6: seed should be a whole number (got 1.5)"),
    "true for a number": ("seed: yes", "run.yaml:6: seed should be a number, not true or false (got True)"),
    "number in quotes": ("seed: '8'", "run.yaml:6: seed should be a number, not text; leave out the quotes (got '8')"),
    "number for true": (
        "compute: {merge_adapters: 1}",
        "run.yaml:6: compute.merge_adapters should be true or false, not a number (got 1)",
    ),
    "number for text": ("evaluation: {style: 3}", "run.yaml:6: evaluation.style should be text; put quotes around it"),
    "either of two types": (
        "student2: 1\nprompt: {template_arguments: {a: [1]}}",
        "run.yaml:7: prompt.template_arguments.a should be true or false or a whole number or text",
    ),
    "adapters of a whole model": (
        "  tuning: {kind: full}\ndiscriminator: {kind: own, model: m}\n"
        "compute: {engine: {kind: vllm_server, urls: ['http://a:1'], sync_folder: x}}",
        "run.yaml:6: compute.engine.sync=adapter needs student.tuning.kind=lora: with full tuning write sync: weights",
    ),
    "a score below the adapters": (
        "  tuning: {kind: lora, first_layer: 15}\ndiscriminator: {kind: shared, layer: 15}\n"
        "evaluation: {independent: {layer: 3}}",
        "run.yaml:8: evaluation.independent.layer=3 reads below student.tuning.first_layer=15: use 16 or more",
    ),
    "a score below its own adapters": (
        "  tuning: {kind: lora}\ndiscriminator: {kind: own, model: m, tuning: {kind: lora, first_layer: 2}, layer: 2}",
        "run.yaml:7: discriminator.layer=2 reads below discriminator.tuning.first_layer=2: use 3 or more",
    ),
    "weights without a way": (
        "compute: {engine: {kind: vllm_server, urls: ['http://a:1'], sync: weights}}",
        "run.yaml:6: compute.engine: `sync_folder` is not set: sync: weights needs a folder that all servers see",
    ),
    "a folder that nobody reads": (
        "compute: {engine: {kind: vllm_server, urls: ['http://a:1'], sync: nccl, sync_folder: x}}",
        "run.yaml:6: compute.engine: `sync_folder`: x with sync: nccl, which needs none: leave it out",
    ),
    "a quantized base that is trained": (
        "  tuning: {kind: full}\n  quantization: {kind: nf4}",
        "run.yaml:7: student: quantization.kind=nf4 holds a frozen base, and tuning.kind=full trains it: use "
        "tuning.kind=lora, or leave quantization out",
    ),
    "a quantized discriminator that is trained": (
        "discriminator: {kind: own, model: m, tuning: {kind: full}, quantization: {kind: int8}}",
        "run.yaml:6: discriminator: quantization.kind=int8 holds a frozen base, and tuning.kind=full trains it",
    ),
    "a merged copy of a quantized base": (
        "  quantization: {kind: int8}",
        "run.yaml:6: student.quantization.kind=int8 needs compute.merge_adapters=false: adapters are merged into a",
    ),
    "servers with another base": (
        "  quantization: {kind: nf4}\ncompute: {engine: {kind: vllm_server, urls: ['http://a:1'], sync_folder: x}}",
        "run.yaml:6: student.quantization.kind=nf4 needs compute.engine.sync=weights or nccl: the servers'",
    ),
    "bits that nobody has": (
        "  quantization: {kind: int4}",
        "run.yaml:6: student.quantization has no kind 'int4'; kinds: int8, nf4",
    ),
    "a server twice": (
        "compute: {engine: {kind: vllm_server, urls: ['http://a:1', 'http://a:1/'], sync_folder: x}}",
        "run.yaml:6: compute.engine: `urls` names a server twice: http://a:1, http://a:1",
    ),
    "no server": (
        "compute: {engine: {kind: vllm_server, urls: [], sync_folder: x}}",
        "run.yaml:6: compute.engine: `urls` names no server",
    ),
    "no address": (
        "compute: {engine: {kind: vllm_server, urls: [here], sync_folder: x}}",
        "run.yaml:6: compute.engine.urls.0: 'here' is no address of an API",
    ),
    "weights of cut distributions": (
        "compute: {engine: {kind: vllm}}\nadversarial: {sampling: {top_p: 0.9}}",
        "run.yaml:6: compute.engine.kind=vllm gives no log-probabilities from before top_p and top_k",
    ),
    "cap below one": (
        "adversarial: {importance_cap: 0.5}",
        "run.yaml:6: adversarial.importance_cap should be greater than or equal to 1 (got 0.5)",
    ),
    "below the least": ("seed: -1", "run.yaml:6: seed should be greater than or equal to 0 (got -1)"),
    "nan": (
        "seqkd: {optimizer: {learning_rate: .nan}}",
        "run.yaml:6: seqkd.optimizer.learning_rate should be a finite number (got nan)",
    ),
    "nan as text": (
        "seqkd: {optimizer: {learning_rate: nan}}",
        "run.yaml:6: seqkd.optimizer.learning_rate should be a finite number (got 'nan')",
    ),
    "inf": (
        "seqkd: {optimizer: {learning_rate: -.inf}}",
        "run.yaml:6: seqkd.optimizer.learning_rate should be a finite number (got -inf)",
    ),
    "beyond floats": (
        "seqkd: {optimizer: {learning_rate: 1e999}}",
        "run.yaml:6: seqkd.optimizer.learning_rate should be a finite number (got inf)",
    ),
    "none of the choices": (
        "compute: {layout: tre}",
        "run.yaml:6: compute.layout should be one of auto, padded, tree, cache, packed; did you mean tree? (got 'tre')",
    ),
    "no kind": ("discriminator: {layer: 3}", "run.yaml:6: discriminator needs a kind, one of shared, own"),
    "wrong kind": (
        "adversarial: {advantages: {kind: mean}}",
        "run.yaml:6: adversarial.advantages has no kind 'mean'; "
        "kinds: mean_only, std_scaled, batch_scaled, leave_one_out; did you mean mean_only?",
    ),
    "kind as a value": (
        "discriminator: shared",
        "run.yaml:6: discriminator should be keys with a kind, one of shared, own: write {kind: shared}",
    ),
    "value for a section": (
        "compute: fast",
        "run.yaml:6: compute should be a section with keys (device, engine, kept_states_mib, layout, merge_adapters, "
        "rows_per_sampling_batch, ...), not a single value (got 'fast')",
    ),
    "empty section": ("compute:", "run.yaml:6: compute is empty; it takes the keys device, engine, "),
    "value for a list": (
        "evaluation: {decodings: 3}",
        "run.yaml:6: evaluation.decodings should be a list of entries with keys (name, sampling)",
    ),
    "missing inside": ("seqkd: {epochs: 1, optimizer: {}}\nwarmup: {phases: [{}]}", "run.yaml:7: warmup.phases.0: a "),
    "tab": (
        "compute:\n\tthreads: 1",
        "run.yaml:7: not valid YAML: found character '\\t' that cannot start any token; ",
    ),
    "unclosed quote": ("runs_dir: 'x", "run.yaml:7: not valid YAML: found unexpected end of stream"),
    "two colons": ("seed: 1: 2", "run.yaml:6: not valid YAML: mapping values are not allowed here"),
    "reserved character": ("runs_dir: @x", "run.yaml:6: not valid YAML: found character '@' that cannot start"),
    "list as a key": ("[seed]: 1", "run.yaml:6: not valid YAML: a key that is not a text"),
    "python object": ("seed: !!python/object:os.system x", "run.yaml:6: not valid YAML: could not determine"),
    "anchor in itself": ("data2: &a [*a]", "run.yaml:6: not valid YAML: an anchor that holds itself"),
    "second document": ("---\nname: y", "run.yaml:6: not valid YAML: a second document begins here"),
    "no reply to compare with": (
        "adversarial:\n  epochs: 1\n  replies_per_prompt: 1",
        "run.yaml:8: adversarial: replies_per_prompt=1: one reply has no baseline; use 2 or more",
    ),
    "more to learn from than there are": (
        "adversarial:\n  epochs: 1\n  trained_replies: 9",
        "run.yaml:8: adversarial: trained_replies=9: use 2 to 8, which is `replies_per_prompt`, or null for all",
    ),
    "nothing to compare it with": (
        "adversarial:\n  epochs: 1\n  trained_replies: 1",
        "run.yaml:8: adversarial: trained_replies=1: use 2 to 8, which is `replies_per_prompt`, or null for all",
    ),
    "greedy training": (
        "adversarial:\n  sampling:\n    temperature: 0",
        "run.yaml:8: adversarial: sampling.temperature=0: greedy replies of a group are all alike",
    ),
    "pattern": ("evaluation: {style: '('}", "run.yaml:6: evaluation.style is not a regular expression: missing )"),
    "device": ("compute: {device: gpu}", "run.yaml:6: compute.device is no device: use auto, cpu, cuda"),
    "closed window": (
        "evaluation:\n  checkpoint:\n    max_length_ratio: 0.1",
        "run.yaml:8: evaluation.checkpoint: min_length_ratio=0.67 is not below max_length_ratio=0.1",
    ),
    "no phases": ("warmup:\n  phases: []", "run.yaml:7: `warmup.phases` is empty: write warmup: null to skip"),
    "frozen and never trained": (
        "warmup: null\nadversarial:\n  on_policy_discriminator: false",
        "run.yaml:8: `adversarial.on_policy_discriminator`: false freezes a discriminator that no phase",
    ),
    "control that goes on from nothing": (
        "warmup: null\nseqkd: {start_from: warmup}",
        "run.yaml:7: `seqkd.start_from`: warmup goes on from a warm-up, and there is none: write start_from: base",
    ),
    "template of no use": (
        "prompt: {format: alpaca, template_arguments: {a: 1}}",
        "run.yaml:6: `prompt.template_arguments` are for chat templates",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_line_its_value_and_the_way_out(name: str) -> None:
    text, said = MISTAKES[name]
    lines = refused(text + "\n")
    assert any(line.startswith(said) for line in lines), lines


OVERRIDES = {
    "seed": "override 'seed': write key.path=value, e.g. adversarial.batch_size=8",
    "=1": "override '=1': write key.path=value",
    "compute..threads=1": "override 'compute..threads=1': write key.path=value",
    "sed=1": "override sed: unknown key sed; did you mean seed?",
    "adversarial.kl.wait=1": "override adversarial.kl.wait: unknown key adversarial.kl.wait; did you mean weight?",
    "foo.bar=1": "override foo.bar: unknown key foo; known keys: ",
    "warmup.phases.7.steps=1": "override warmup.phases.7.steps: warmup.phases has no entry 7: it has 2 entries, 0 to 1",
    "warmup.phases.-1.steps=1": "override warmup.phases.-1.steps: warmup.phases is a list: say which entry",
    "warmup.phases.all.steps=1": "override warmup.phases.all.steps: warmup.phases is a list: say which entry",
    "name.x=1": "override name.x: name is 'x', a single value; it has no keys",
    "student=m": "override student should be a section with keys (",
    "student.tuning=lora": "override student.tuning should be keys with a kind, one of lora, full: write {kind: lora}",
    "student.tuning.kind=ful": "override student.tuning.kind: student.tuning has no kind 'ful'; kinds: lora, full; did",
    "seed=[1": "override seed: '[1' is not a valid YAML value; put quotes around it",
    "seed={a: 1, a: 2}": "override seed: '{a: 1, a: 2}' is not a valid YAML value",
    "seed=": "override seed should be a whole number (got '')",
    "adversarial.batch_size=0": "override adversarial.batch_size should be greater than 0 (got 0)",
    "adversarial.student.learning_rate=.nan": "override adversarial.student.learning_rate should be a finite number",
    "adversarial.replies_per_prompt=1": "override adversarial.replies_per_prompt=1: one reply has no baseline; use 2",
    "adversarial.trained_replies=9": "override adversarial.trained_replies=9: use 2 to 8, which is",
    "adversarial={replies_per_prompt: 1, epochs: 1}": "override adversarial: replies_per_prompt=1: one reply has no",
    "adversarial.sampling.temperature=0": "override adversarial.sampling.temperature=0: greedy replies of a group are",
    "warmup.phases=[]": "override warmup.phases is empty: write warmup: null to skip",
    "student.quantization.kind=int8": "override student.quantization.kind=int8 needs compute.merge_adapters=false: ",
    "data.train={pth: a}": "override data.train: unknown key data.train.pth; did you mean path?",
}


@pytest.mark.parametrize("override", OVERRIDES)
def test_a_mistaken_override_is_named(override: str) -> None:
    lines = refused("", override)
    assert any(line.startswith(OVERRIDES[override]) for line in lines), lines


def test_all_mistakes_are_shown_in_the_order_of_the_file_and_overrides_last() -> None:
    lines = refused("seed: x\ncompute:\n  threads: 0\n  layuot: tree\n", "foo=3", "bar")
    assert [line.split(": ")[0] for line in lines] == [
        "run.yaml:6",
        "run.yaml:8",
        "run.yaml:9",
        "override foo",
        "override 'bar'",
    ]


def test_every_key_that_is_given_twice_is_named() -> None:
    assert refused("name: y\ncompute: {threads: 1, threads: 2}\n") == [
        "run.yaml:6: the key name is given twice, first in line 1",
        "run.yaml:7: the key compute.threads is given twice, first in line 7",
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty; `gad init` writes a run file"),
        (b"# nothing\n", "is empty"),
        (b"- a\n- b\n", "a run file is a mapping of keys to values, this is a list"),
        (b"hello\n", "this is the single value 'hello'"),
        (b"name: caf\xe9\n", ":1: not UTF-8"),
        (b"a: 1\nname: \xff\n", ":2: not UTF-8"),
        ("name: x".encode("utf-16"), "not UTF-8"),
        (b"\x00\x01\x02", "is a binary file, not a run file"),
        (b"PK\x03\x04" + bytes(100), "is a binary file"),
        (b"name: \x01\n", ":1: not valid YAML: the character '\\x01'"),
        (b"a: 1\n" * 300_000, "it is larger than 1 MiB"),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_a_file_that_is_no_run_file(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_anchors_that_multiply_are_refused_at_once() -> None:
    layers = [f"l{depth}: &l{depth} [{', '.join([f'*l{depth - 1}'] * 9)}]" for depth in range(1, 12)]
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse("\n".join(["l0: &l0 [x]", *layers]), "run.yaml")


def test_a_missing_file_a_folder_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "quick.yaml").write_text(BASE, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"quikc\.yaml: no such file; did you mean .*quick\.yaml\?"):
        load(tmp_path / "quikc.yaml")
    with pytest.raises(ConfigError, match=r"`gad init .*` writes one"):
        load(tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match=r"is a folder, not a run file; it holds quick\.yaml"):
        load(tmp_path)
    with pytest.raises(ConfigError, match=r"the folder .*none is not there either"):
        load(tmp_path / "none" / "run.yaml")


def test_numbers_are_read_as_people_write_them() -> None:
    rates = {"1e-6": 1e-6, "1.0e-6": 1e-6, "1E-6": 1e-6, ".5": 0.5, "1_0.5": 10.5, "+2": 2.0, "1.": 1.0}
    for written, meant in rates.items():
        config = loaded(f"seqkd: {{optimizer: {{learning_rate: {written}}}}}\n")
        assert config.seqkd is not None
        assert math.isclose(config.seqkd.optimizer.learning_rate, meant)
    assert [loaded(f"seed: {seed}\n").seed for seed in ("010", "1_000", "0", "1e3")] == [10, 1000, 0, 1000]
    assert parse(BASE.replace("name: x", "name: 2024-13-45"), "run.yaml").name == "2024-13-45"


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load(path).name == "x"


def test_merged_anchors_are_read() -> None:
    config = loaded(
        "warmup:\n  student: &rate {learning_rate: 0.5}\n  discriminator:\n    <<: *rate\n    weight_decay: 0\n"
    )
    assert config.warmup is not None
    assert (config.warmup.discriminator.learning_rate, config.warmup.discriminator.weight_decay) == (0.5, 0.0)


def test_an_override_reaches_into_what_the_file_does_not_say() -> None:
    config = loaded("", "student.tuning.rank=8", "warmup.phases.0.steps=5", "evaluation.decodings.1.name=best")
    assert config.student.tuning == Lora(rank=8)
    assert config.warmup is not None
    assert [(phase.train, phase.steps, phase.epochs) for phase in config.warmup.phases] == [
        ("discriminator", 5, None),
        ("both", None, 1.0),
    ]
    assert [decoding.name for decoding in config.evaluation.decodings] == ["t1", "best"]
    assert config.evaluation.decodings[1].sampling.temperature == 0.0


def test_the_last_override_of_a_key_counts_and_may_be_of_any_form() -> None:
    config = loaded(
        "seed: 1\n", "seed=2", "seed=3", "seqkd={epochs: 1}", "warmup=null", "data.train=[b.jsonl, c=d.csv]"
    )
    assert config.seed == 3
    assert config.seqkd is not None
    assert config.warmup is None
    assert [source.path for source in config.data.train] == ["b.jsonl", "c=d.csv"]


def test_an_override_switches_a_kind() -> None:
    config = loaded("", "student.tuning.kind=full", "discriminator={kind: own, model: m}")
    assert config.student.tuning == Full()
    assert isinstance(config.discriminator, OwnDiscriminator)


def test_a_quantized_base_with_each_engine_that_fits_it() -> None:
    base = BASE + "  quantization: {kind: nf4, double: false}\n"
    servers = "{kind: vllm_server, urls: ['http://a:1'], sync_folder: x, sync: weights}"
    for compute in ("{merge_adapters: false}", "{engine: {kind: vllm}}", f"{{engine: {servers}}}"):
        assert parse(base + f"compute: {compute}\n", "run.yaml", ()).student.quantization == Nf4(double=False)


def test_full_tuning_with_a_shared_discriminator_is_refused() -> None:
    said = (
        "discriminator.kind=shared needs student.tuning.kind=lora: full tuning leaves no frozen base to share; "
        "write discriminator: {kind: own, model: m}"
    )
    assert refused("", "student.tuning.kind=full") == [f"override student.tuning.kind: {said}"]
    base = BASE + "  tuning: {kind: full}\n"
    assert refused("", base=base) == [f"run.yaml:6: {said}"]


def test_no_warm_up_and_an_adversarial_stage_go_together() -> None:
    config = loaded("warmup: null\n")
    assert config.warmup is None
    assert config.adversarial is not None


def test_a_section_in_part_keeps_the_rest_of_its_default() -> None:
    whole = loaded("").adversarial
    part = loaded("adversarial:\n  student: {learning_rate: 0.5}\n").adversarial
    assert whole is not None
    assert part is not None
    assert whole.student.schedule == part.student.schedule == "linear"
    assert part.student == whole.student.model_copy(update={"learning_rate": 0.5})
    assert part.discriminator == whole.discriminator
    decay = loaded("adversarial: {student: {weight_decay: 0}}\n").adversarial
    assert decay is not None
    assert decay.student.learning_rate == 1e-6
    whole_again = RunConfig.model_validate(loaded("").model_dump(mode="json"))
    assert whole_again == loaded("")


@pytest.mark.parametrize("key", ["api_key", "password", "seed_secret"])
def test_a_secret_that_was_put_into_the_file_is_not_repeated(key: str) -> None:
    lines = refused(f"{key}: sk-very-secret\n", f"student.{key}=sk-very-secret")
    assert len(lines) == 2
    assert not any("sk-very-secret" in line for line in lines)
