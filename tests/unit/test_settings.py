"""Settings from flags and variables, and the sentences when they are wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from pydantic import ValidationError
from uvicorn.middleware.proxy_headers import _TrustedHosts

from service.api.server import believed
from service.cache import default_cache_dir, write_whole
from service.settings import Settings, SettingsError, flag_of, load_settings, variable_of
from service.units import parse_bytes, parse_list, parse_seconds


def refused(flags: dict[str, object] | None = None, **environ: str) -> str:
    """The text of the error that these settings give."""
    with pytest.raises(SettingsError) as caught:
        load_settings(flags or {}, environ)
    return str(caught.value)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default() -> None:
    settings = load_settings({"port": "1234"}, {"ONESTEP_PORT": "99", "ONESTEP_MAX_BATCH_SIZE": "8", "HOME": "/x"})
    assert (settings.port, settings.max_batch_size, settings.request_timeout) == (1234, 8, 300.0)


def test_every_setting_can_be_given_as_a_flag_and_as_a_variable() -> None:
    names = list(Settings.model_fields)
    assert len(names) == len({flag_of(name) for name in names}) == len({variable_of(name) for name in names})
    assert (flag_of("max_queue_time"), variable_of("max_queue_time")) == ("--max-queue-time", "ONESTEP_MAX_QUEUE_TIME")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5m", 90), ("250ms", 0.25), ("2h", 7200), (" 3 s ", 3), ("0", 0)]
)
def test_durations_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "x", "-1", "1e400", "inf", "nan", "1 fortnight", "1" * 400, "٣"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="give a"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("10MiB", 10 * 2**20), ("1048576", 2**20), ("1.5KiB", 1536), ("2MB", 2_000_000), ("64kib", 65536)],
)
def test_sizes_are_bytes_or_have_a_unit(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_a_size_is_a_whole_number_of_bytes() -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_bytes("1.5")


def test_lists_are_separated_by_commas_and_empty_parts_do_not_count() -> None:
    assert parse_list(" a, b,,c ,") == ("a", "b", "c")


def test_keys_of_which_only_the_commas_are_left_do_not_open_the_service() -> None:
    assert "api_keys (--api-keys, ONESTEP_API_KEYS) is wrong: give something" in refused(ONESTEP_API_KEYS=" , ")


def test_an_unknown_variable_stops_the_start_and_names_its_neighbour() -> None:
    assert refused(ONESTEP_MAX_QUEU_TIME="1") == (
        "ONESTEP_MAX_QUEU_TIME is not a setting of this service; did you mean ONESTEP_MAX_QUEUE_TIME?"
    )


def test_a_wrong_value_is_named_by_flag_and_variable_and_never_repeated() -> None:
    text = refused(ONESTEP_API_KEYS="sec ret", ONESTEP_MAX_QUEUE_TIME="tomorrow")
    assert "max_queue_time (--max-queue-time, ONESTEP_MAX_QUEUE_TIME) is wrong: give a duration" in text
    assert "api_keys (--api-keys, ONESTEP_API_KEYS)" in text
    assert "sec ret" not in text
    assert "tomorrow" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("batch_invariant", "maybe"),
        ("max_batch_size", "0"),
        ("max_batch_size", "1.5"),
        ("request_timeout", "0"),
        ("log_format", "xml"),
        ("log_level", "loud"),
        ("dtype", "int8"),
        ("device", "tpu"),
        ("device", "auto,cpu"),
        ("device", ","),
        ("root_path", "images"),
        ("root_path", "/a b"),
        ("root_path", "/a//b"),
        ("cors_origins", "app.example"),
        ("cors_origins", "https://app.example/path"),
        ("forwarded_allow_ips", "proxy"),
        ("model", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name: str, value: str) -> None:
    assert f"{name} ({flag_of(name)}, {variable_of(name)}) is wrong" in refused({name: value})


def test_several_mistakes_are_told_at_once() -> None:
    assert len(refused({"port": "x", "log_level": "y"}, ONESTEP_NONSENSE="1").splitlines()) == 3


def test_the_ports_of_service_and_metrics_differ() -> None:
    assert refused({"port": "9000", "metrics_port": "9000"}) == "metrics_port must differ from port."


def test_an_empty_variable_counts_as_unset() -> None:
    assert load_settings({}, {"ONESTEP_API_KEYS": "", "ONESTEP_PORT": " "}) == load_settings({}, {})


def test_what_kubernetes_adds_for_a_service_called_onestep_is_no_setting() -> None:
    added = {
        "ONESTEP_PORT": "tcp://10.0.0.7:8000",
        "ONESTEP_SERVICE_HOST": "10.0.0.7",
        "ONESTEP_SERVICE_PORT": "8000",
        "ONESTEP_SERVICE_PORT_HTTP": "8000",
        "ONESTEP_PORT_8000_TCP": "tcp://10.0.0.7:8000",
        "ONESTEP_PORT_8000_TCP_ADDR": "10.0.0.7",
    }
    assert load_settings({}, added).port == 8000


def test_settings_cannot_be_changed_and_do_not_show_keys() -> None:
    settings = load_settings({"api_keys": "top-secret,other-secret"}, {})
    assert settings.api_keys == ("top-secret", "other-secret")
    assert "secret" not in repr(settings) + str(settings)
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_every_setting_has_one_plain_sentence() -> None:
    for name, field in Settings.model_fields.items():
        text = field.description or ""
        assert text[:1].isalpha(), name
        assert text.endswith("."), name


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_settings({}, {}).cache_dir == tmp_path / "onestep"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert load_settings({}, {}).cache_dir == Path.home() / ".cache" / "onestep"


def test_the_cache_of_a_user_without_a_home_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", nowhere)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir().parent == Path(tempfile.gettempdir())


def test_the_cache_may_be_named_from_home() -> None:
    assert load_settings({"cache_dir": "~/x"}, {}).cache_dir == Path.home() / "x"


def test_what_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"1")
    write_whole(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"2"
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "folder", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]


def test_a_trailing_slash_of_the_prefix_is_dropped() -> None:
    assert load_settings({"root_path": "/images/"}, {}).root_path == "/images"


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("127.0.0.1", ["127.0.0.1", "::ffff:127.0.0.1"]),
        ("10.0.0.5/8", ["10.1.2.3", "::ffff:10.1.2.3"]),
        ("192.0.2.1,*", ["8.8.8.8", "2001:db8::1"]),
        ("2001:db8::/32", ["2001:db8::1"]),
    ],
)
def test_proxies_that_are_named_are_believed_whatever_the_socket_calls_them(value: str, addresses: list[str]) -> None:
    """A network may be named by any of its addresses; a socket for both versions of IP maps those of IPv4."""
    settings = load_settings({"forwarded_allow_ips": value}, {})
    trusted = _TrustedHosts(believed(settings.forwarded_allow_ips))
    assert [address in trusted for address in addresses] == [True] * len(addresses)
    assert ("203.0.113.9" in trusted) == ("*" in value)
