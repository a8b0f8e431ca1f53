"""Every way a settings file or a variable can be wrong is told in a line that names the key and mends it."""

import re
import tomllib
from pathlib import Path

import pytest

from idlewatt.cli import settings_tree
from idlewatt.cli.config import load_settings
from idlewatt.cli.config_sample import sample
from idlewatt.stream.errors import ConfigError
from idlewatt.stream.settings import Settings


def _faults(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    file = tmp_path / "idlewatt.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ or {})
    lines = str(caught.value).splitlines()
    return [line.removeprefix(f"{file}: ") for line in lines]


BAD_FILES = {
    "key_misspelt": ("[serve]\nprot = 1", "[serve] has no key prot; did you mean port?"),
    "section_misspelt": (
        "[colect]\ngpu = 'none'",
        "the file has no section [colect]; did you mean collect?",
    ),
    "key_in_the_wrong_section": ("port = 1", "the file has no key port; it belongs in [serve]"),
    "key_like_no_other": (
        "[serve]\nzzzz = 1",
        "[serve] has no key zzzz; keys there: host, port",
    ),
    "key_in_a_list": (
        "[[collect.engine]]\nurl = 'http://a/metrics'\n[[collect.engine]]\nurl = 'http://b/metrics'\nnmae = 'b'",
        "[[collect.engine]] number 2 has no key nmae; did you mean name?",
    ),
    "key_in_a_named_section": (
        "[process.pool.chat]\nwatts = 1",
        "[process.pool.chat] has no key watts; keys there: provisioned_watts_per_gpu",
    ),
    "unit_in_quotes": (
        "[collect]\ngpu_interval_s = '10s'",
        '[collect] gpu_interval_s must be a number of seconds, 0.1 to 60; it is "10s": '
        "write a plain number, without quotes or unit, gpu_interval_s = 10",
    ),
    "unit_that_cannot_be_dropped": (
        "[collect]\ngpu_interval_s = '500ms'",
        '[collect] gpu_interval_s must be a number of seconds, 0.1 to 60; it is "500ms": '
        "write a plain number, without quotes or unit",
    ),
    "unit_without_quotes": (
        "\n[collect]\ngpu_interval_s = 10s",
        "not valid TOML: gpu_interval_s must be a plain number, without a unit "
        "(Expected newline or end of document after a statement (at line 3, column 20))",
    ),
    "number_in_quotes": (
        "[serve]\nport = '9477'",
        '[serve] port must be a whole number, 0 to 65535; it is "9477": '
        "write a plain number, without quotes or unit, port = 9477",
    ),
    "truth_for_a_number": (
        "[process]\nwindow_s = true",
        "[process] window_s must be a whole number of seconds, 1 to 60; it is true",
    ),
    "text_for_a_truth": (
        "[process]\npublished_yardsticks = 'off'",
        '[process] published_yardsticks must be true or false; it is "off"',
    ),
    "number_for_text": ("[log]\npath = 3", "[log] path must be text; it is 3"),
    "out_of_limits": (
        "[serve]\nport = 70000",
        "[serve] port must be a whole number, 0 to 65535; it is 70000",
    ),
    "no_number": (
        "[[process.yardstick]]\ntokens_per_joule = nan",
        "[[process.yardstick]] number 1 tokens_per_joule must be a number of tokens per joule, above 0, "
        "at most 1000000; it is NaN",
    ),
    "word_misspelt": (
        "[log]\nkind = 'kafak'",
        '[log] kind must be one of "embedded", "kafka"; it is "kafak": did you mean kafka?',
    ),
    "word_of_a_list_misspelt": (
        "[process]\nstages = ['metre']",
        '[process] stages must be a list of any of "meter", "economy"; one is "metre": did you mean meter?',
    ),
    "window_that_divides_no_minute": (
        "[process]\nwindow_s = 7",
        "[process] window_s must divide 60 (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60), not 7",
    ),
    "grace_too_short_to_measure_anything": (
        "[collect]\ngpu_interval_s = 30",
        "[process] grace_s must be at least 45, 1.5 times collect.gpu_interval_s: "
        "with 15 no reading would count as measured. Set it alike here and where processors run",
    ),
    "grace_too_short_for_rows_to_come_in_time": (
        "[collect]\ngpu_interval_s = 2\nsend_interval_s = 13.5",
        "[process] grace_s must be at least 15.5, collect.send_interval_s and the slower of gpu_interval_s and "
        "engine_interval_s together: with 15 rows would come too late for live figures. Raise it here "
        "and where processors run, or lower collect.send_interval_s",
    ),
    "grace_too_short_for_rows_that_are_sent_as_always": (
        "[process]\ngrace_s = 1.5",
        "[process] grace_s must be at least 2, collect.send_interval_s and the slower of gpu_interval_s and "
        "engine_interval_s together: with 1.5 rows would come too late for live figures. Raise it here "
        "and where processors run, or lower collect.send_interval_s",
    ),
    "required_key_missing": (
        "[[collect.engine]]\nname = 'a'",
        "[[collect.engine]] number 1 needs url (Its metrics page), such as "
        'url = "http://127.0.0.1:8000/metrics"',
    ),
    "no_address": (
        "[[collect.engine]]\nurl = 'localhost:8000'",
        "[[collect.engine]] number 1 url must be an address that begins with http:// or https://; "
        'it is "localhost:8000"',
    ),
    "no_gpu": (
        "[[collect.engine]]\nurl = 'http://a/metrics'\ngpus = ['GPU-1', 'MIG-2']",
        "[[collect.engine]] number 1 gpus must be a list of UUIDs of GPUs as nvidia-smi -L shows them, "
        '"GPU-..."; one is "MIG-2"',
    ),
    "part_twice": (
        "[economy]\nlost_revenue_counts = ['idle_free.draw', 'idle_free.draw']",
        "[economy] lost_revenue_counts must name each part once; idle_free.draw is there twice",
    ),
    "single_brackets_for_a_list": (
        "[collect.engine]\nurl = 'http://a'",
        "collect.engine must be a list of sections: write [[collect.engine]] on a line of its own, its keys below",
    ),
    "value_for_a_section": (
        "serve = 9477",
        "serve must be a section: write [serve] on a line of its own, its keys below",
    ),
    "value_for_a_named_section": (
        "[process.pool]\nchat = 1000",
        "process.pool must be a section: write [process.pool.NAME] on a line of its own, its keys below",
    ),
    "sasl_by_halves": (
        "[log]\nsecurity_protocol = 'SASL_SSL'",
        "[log] security_protocol SASL_* needs sasl_mechanism, sasl_username and sasl_password",
    ),
    "deep": ("site = " + 100_000 * "[", "nested too deep"),
    "password_that_is_not_used": (
        "[log]\nkind = 'kafka'\nsasl_username = 'x'\nsasl_password = 'hush'",
        "[log] security_protocol PLAINTEXT does not use sasl_username, sasl_password: "
        "set SASL_SSL, SASL_PLAINTEXT or SSL, or leave them out",
    ),
    "certificates_that_are_not_used": (
        "[log]\nkind = 'kafka'\nsecurity_protocol = 'SASL_PLAINTEXT'\nsasl_mechanism = 'PLAIN'\n"
        "sasl_username = 'x'\nsasl_password = 'hush'\nssl_cafile = '/ca.pem'",
        "[log] security_protocol SASL_PLAINTEXT does not use ssl_cafile: ",
    ),
    "key_without_its_certificate": (
        "[log]\nkind = 'kafka'\nsecurity_protocol = 'SSL'\nssl_keyfile = '/client.key'",
        "[log] ssl_keyfile needs ssl_certfile",
    ),
    **{
        f"no_servers_{n}": (
            f"[log]\nkind = 'kafka'\nbootstrap_servers = '{text}'",
            "[log] bootstrap_servers must be HOST:PORT of one or more brokers, separated by commas, "
            f"without http:// and such; {one!r} is none",
        )
        for n, (text, one) in enumerate(
            [
                ("http://kafka:9092", "http://kafka:9092"),
                ("kafka-1:9092, ::1", "::1"),
                ("kafka:99999", "kafka:99999"),
                ("kafka-1:9092 kafka-2:9092", "kafka-1:9092 kafka-2:9092"),
                (" , ", " , "),
            ]
        )
    },
    "token_that_no_header_can_have": (
        '[serve]\ntoken = "0123456789abcdef\\n"',
        "[serve] token must be one line of at least 16 characters, without a blank before or after it",
    ),
    "placeholder_that_stands_for_nothing": (
        "[[collect.consumer]]\nlabel = 'team'\nteam = 'x-{val}'",
        "[[collect.consumer]] number 1 team has {val}, which stands for nothing; {value} is the label's value",
    ),
    "bracket_left_open": ("site = 'a'\n[serve\n", "not valid TOML: expected ']' at the end of a table"),
    "key_twice": (
        "site = 'a'\nsite = 'b'",
        "not valid TOML: cannot overwrite a value (at line 2, column 11)",
    ),
}


@pytest.mark.parametrize(("text", "fault"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_file_is_told_in_one_line(tmp_path: Path, text: str, fault: str) -> None:
    """Each fault of a file is one line that says where it is, what is there and what must be."""
    lines = _faults(tmp_path, text)
    assert len(lines) == 1
    assert lines[0].startswith(fault)


BAD_VARIABLES = {
    "variable_misspelt": (
        {"IDLEWATT_PROT": "1"},
        "environment: there is no setting IDLEWATT_PROT; did you mean IDLEWATT_PORT?",
    ),
    "section_misspelt": (
        {"IDLEWATT_COLECT__GPU": "none"},
        "environment: there is no setting IDLEWATT_COLECT__GPU; did you mean IDLEWATT_COLLECT__GPU?",
    ),
    "variable_like_no_other": (
        {"IDLEWATT_ZZZZ": "1"},
        "environment: there is no setting IDLEWATT_ZZZZ; idlewatt config lists what there is",
    ),
    "no_number": (
        {"IDLEWATT_PORT": "many"},
        'environment: IDLEWATT_PORT: [serve] port must be a whole number, 0 to 65535; it is "many": '
        "write a plain number, without quotes or unit",
    ),
    "secret_too_short": (
        {"IDLEWATT_SERVE__TOKEN": "hunter2"},
        "environment: IDLEWATT_SERVE__TOKEN: [serve] token must be one line of at least 16 characters, "
        "without a blank before or after it",
    ),
    "fault_within_a_list": (
        {"IDLEWATT_COLLECT__ENGINE": '[{url = "http://a", nmae = "b"}]'},
        "environment: IDLEWATT_COLLECT__ENGINE: [[collect.engine]] number 1 has no key nmae; did you mean name?",
    ),
    "word_misspelt": (
        {"IDLEWATT_COLLECT__GPU": "nvm"},
        'environment: IDLEWATT_COLLECT__GPU: [collect] gpu must be one of "nvml", "simulated", "none"; '
        'it is "nvm": did you mean nvml?',
    ),
}


@pytest.mark.parametrize(("environ", "fault"), BAD_VARIABLES.values(), ids=BAD_VARIABLES.keys())
def test_bad_variable_is_told_by_its_name(environ: dict[str, str], fault: str) -> None:
    """A wrong variable is refused like a wrong key, and the line names the variable."""
    with pytest.raises(ConfigError) as caught:
        load_settings(None, environ)
    assert str(caught.value) == fault


@pytest.mark.parametrize(
    ("text", "grace_s"),
    [
        # seconds are no fractions of two: 0.2 and 0.4 together are 0.6, not more
        ("gpu_interval_s = 0.2\nengine_interval_s = 0.2\nsend_interval_s = 0.4", 0.6),
        # what a gateway tells waits for no window
        (
            "gpu = 'none'\nsend_interval_s = 30\n[[collect.gateway]]\nkind = 'vllm'\nurl = 'http://g/metrics'",
            15.0,
        ),
    ],
    ids=["in_time", "gateways_alone"],
)
def test_rows_that_come_in_time_are_accepted(tmp_path: Path, text: str, grace_s: float) -> None:
    """Only what is read here, and sent as it is said here, is held against the grace."""
    path = tmp_path / "idlewatt.toml"
    path.write_text(f"[process]\ngrace_s = {grace_s}\n[collect]\n{text}")
    assert load_settings(path, {}).process.grace_s == grace_s


def test_every_fault_is_listed(tmp_path: Path) -> None:
    """Whoever mends a file sees all that is wrong with it at once."""
    lines = _faults(tmp_path, "[serve]\nprot = 1\nhost = 2\n[log]\nkind = 'x'", {"IDLEWATT_PROT": "1"})
    assert len(lines) == 4


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """A file that is not there is an error, never a silent start on defaults."""
    for environ, path in (({}, tmp_path / "no.toml"), ({"IDLEWATT_CONFIG": str(tmp_path / "no.toml")}, None)):
        with pytest.raises(
            ConfigError, match=r"no\.toml: there is no such file; make one with: idlewatt config"
        ):
            load_settings(path, environ)


def test_unreadable_file_is_told(tmp_path: Path) -> None:
    """A folder, and bytes that are no text, are told as what they are."""
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_settings(tmp_path, {})
    file = tmp_path / "latin.toml"
    file.write_bytes(b"site = '\xe9'")
    with pytest.raises(ConfigError, match="byte 8 is not UTF-8"):
        load_settings(file, {})


def test_password_never_shows(tmp_path: Path) -> None:
    """A fault of the password does not print it."""
    assert "4711" not in "".join(_faults(tmp_path, "[log]\nsasl_password = 4711"))
    assert "4711" not in "".join(_faults(tmp_path, "[log]\nsasl_password = 4711x"))


def test_environment_wins_over_file_wins_over_default(tmp_path: Path) -> None:
    """A variable beats the file, the file beats the default; text is taken as it stands."""
    file = tmp_path / "a.toml"
    file.write_text("site = 'hall'\n[serve]\nport = 1111\nhost = '0.0.0.0'\n")
    environ = {
        "IDLEWATT_CONFIG": str(file),
        "IDLEWATT_PORT": "2222",
        "IDLEWATT_LOG__SASL_PASSWORD": "123",
        "IDLEWATT_PROCESS__STAGES": '["meter"]',
        "IDLEWATT_COLLECT__ENGINE": '[{url = "http://a/metrics"}]',
        "IDLEWATT_SITE": "",
        "HOME": "/",
    }
    settings = load_settings(None, environ)
    assert (settings.site, settings.serve.port, settings.serve.host) == ("hall", 2222, "0.0.0.0")
    assert settings.log.sasl_password == "123"
    assert settings.process.stages == ("meter",)
    assert settings.collect.engine[0].url == "http://a/metrics"
    assert settings.collect.timeout_s == Settings().collect.timeout_s


def test_servers_are_taken_as_people_write_them(tmp_path: Path) -> None:
    """Names, addresses of both kinds, with Kafka's port if none is given, blanks and a comma too much; empty is left out."""
    file = tmp_path / "a.toml"
    file.write_text(
        "[log]\nkind = 'kafka'\nbootstrap_servers = 'my_kafka-1.example, 10.0.0.1:9093,[fe80::1%eth0], '\n"
        "sasl_username = ''\nsasl_password = ''"
    )
    servers = ["my_kafka-1.example:9092", "10.0.0.1:9093", "[fe80::1%eth0]:9092"]
    assert load_settings(file, {}).log.servers == servers


def test_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    """A file saved by a Windows editor loads."""
    file = tmp_path / "a.toml"
    file.write_bytes(b"\xef\xbb\xbfsite = 'hall'\r\n[serve]\r\nport = 1\r\n")
    assert load_settings(file, {}).site == "hall"


def test_variables_of_kubernetes_are_left_alone() -> None:
    """A Service called idlewatt does not keep pods from starting."""
    environ = {
        "IDLEWATT_PORT": "tcp://10.0.0.1:9477",
        "IDLEWATT_SERVICE_HOST": "10.0.0.1",
        "IDLEWATT_SERVICE_PORT": "9477",
        "IDLEWATT_SERVICE_PORT_METRICS": "9477",
        "IDLEWATT_PORT_9477_TCP": "tcp://10.0.0.1:9477",
        "IDLEWATT_PORT_9477_TCP_ADDR": "10.0.0.1",
        "IDLEWATT_PROCESS_SERVICE_HOST": "10.0.0.2",
        "IDLEWATT_PROCESS_PORT": "tcp://10.0.0.2:9477",
    }
    assert load_settings(None, environ) == Settings()


def test_sample_loads_as_printed_and_changes_nothing(tmp_path: Path) -> None:
    """The sample as printed is the defaults."""
    file = tmp_path / "sample.toml"
    file.write_text(sample())
    assert load_settings(file, {}) == Settings()


def test_sample_uncommented_sets_every_key_to_its_default(tmp_path: Path) -> None:
    """With every key uncommented the sample holds all keys, loads, and differs from the defaults only in examples."""
    text = re.sub(r"^#(?! )", "", sample(), flags=re.MULTILINE)
    file = tmp_path / "sample.toml"
    file.write_text(text)
    loaded = load_settings(file, {})
    tree = tomllib.loads(text)
    defaults = Settings()
    for path, section in settings_tree.sections().items():
        written, found, default = tree, loaded, defaults
        for name in path:
            written, found, default = written[name], _member(found, name), _member(default, name)
            if isinstance(written, list):
                written, found = written[0], found[0]
        if section.shape == "map":
            written, found = written["chat"], found["chat"]
        assert set(section.keys) <= set(written)
        for key in section.keys.values():
            if key.default is not None and section.shape == "table":
                assert getattr(found, key.name) == getattr(default, key.name)


def _member(node: object, name: str) -> object:
    return getattr(node, name, None)


def test_every_key_is_explained() -> None:
    """Each key has a sentence, and a default or an example to show."""
    for section in settings_tree.sections().values():
        assert section.description.endswith(".")
        for key in section.keys.values():
            assert key.description.endswith(".")
            assert key.shown is not None
