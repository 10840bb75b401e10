"""Settings: argument, environment, default; one table says them all."""

import pickle
from pathlib import Path

import jitd
import pytest
from jitd.cache.keys import Key
from jitd.cache.paths import open_root
from jitd.cache.store import Store
from jitd.jit import runtime
from jitd.jit.settings import MODES, SettingError, Settings, table


def test_defaults():
    """With nothing given, a miss tunes, here or in a daemon, and the cache is the user's."""
    settings = Settings.read({})
    assert (settings.mode, settings.cache_dir, settings.interpret) == ("auto", None, False)
    assert settings.jobs >= 1 and settings.compile_timeout_s == 300


def test_argument_over_environment_over_default():
    """An argument wins over the environment, which wins over the default."""
    environment = {"JITD_MODE": "strict", "JITD_JOBS": "3", "JITD_CACHE_DIR": "/somewhere"}
    assert Settings.read(environment).mode == "strict"
    assert Settings.read(environment, mode="off").mode == "off"
    assert Settings.read(environment, mode=None).mode == "strict"
    assert Settings.read(environment).jobs == 3
    assert Settings.read(environment).cache_dir == Path("/somewhere")


def test_an_empty_variable_is_not_set():
    """`JITD_CACHE_DIR=` does not make a cache of the current folder."""
    names = {variable: "" for variable, *_ in table({})}
    assert Settings.read(names) == Settings.read({})
    assert {origin for _, _, origin, _ in table(names)} == {"default"}


@pytest.mark.parametrize(
    ("text", "value"), [("1", True), ("on", True), ("TRUE", True), ("0", False), ("", False)]
)
def test_switches(text, value):
    """A switch takes the usual words."""
    assert Settings.read({"JITD_INTERPRET": text}).interpret is value


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("JITD_MODE", "fast", "allowed are tune, background, replay, strict, off"),
        ("JITD_JOBS", "0", "from 1"),
        ("JITD_JOBS", "many", "allowed are whole numbers from 1"),
        ("JITD_COMPILE_TIMEOUT_S", "-1", "from 1"),
        ("JITD_INTERPRET", "maybe", "allowed are 1 and 0"),
    ],
)
def test_a_wrong_value_is_named(variable, text, says):
    """A wrong value raises one error with the variable, the value and what is allowed."""
    with pytest.raises(SettingError, match=says) as caught:
        Settings.read({variable: text})
    assert str(caught.value).startswith(f"{variable}={text!r}")
    assert isinstance(caught.value, jitd.JitdError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_configure_changes_what_is_named():
    """`configure` keeps what is not named, and refuses unknown names and wrong values."""
    jitd.configure(mode="strict")
    assert jitd.configure(jobs=5).settings.mode == "strict"
    with pytest.raises(SettingError, match="no setting 'speed'; there are cache_dir"):
        jitd.configure(speed="high")
    with pytest.raises(SettingError, match="mode='fast'"):
        jitd.configure(mode="fast")
    assert runtime.current().settings == Settings.read().replace(mode="strict", jobs=5)


def test_the_table_says_where_values_come_from():
    """`jitctl env` shows each variable with its value and origin."""
    rows = {variable: rest for variable, *rest in table({"JITD_MODE": "off"})}
    assert rows["JITD_MODE"][:2] == ["off", "environment"]
    assert rows["JITD_JOBS"][1] == "default"
    assert all(meaning for *_, meaning in rows.values())


def test_a_runtime_is_a_sentence(tmp_path):
    """The runtime says its mode and its cache."""
    jitd.configure(mode="replay", cache_dir=tmp_path / "c")
    assert repr(runtime.current()) == f"<Runtime: mode replay, cache {tmp_path / 'c'}>"


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_can_be_set(mode):
    """Each of the five modes is accepted by name."""
    assert jitd.configure(mode=mode).settings.mode == mode


def test_the_cache_path_is_a_list_of_folders():
    """It is written as PATH is, given as a list or as text, and told as it is written."""
    paths = (Path("/a"), Path("b c"))
    environment = {"JITD_CACHE_PATH": ":/a::b c:"}
    assert Settings.read({}).cache_path == Settings.read({"JITD_CACHE_PATH": ""}).cache_path == ()
    assert Settings.read(environment).cache_path == paths
    assert Settings().replace(cache_path=["/a", Path("b c")]).cache_path == paths
    assert Settings().replace(cache_path="/a:b c").cache_path == paths
    rows = {variable: value for variable, value, *_ in table(environment)}
    assert rows["JITD_CACHE_PATH"] == "/a:b c"


def test_the_runtime_opens_the_cache_path(tmp_path):
    """What is in a read-only folder of the setting is found by the runtime's store."""
    key = Key.of("winner", "silu", n=1)
    Store(open_root(tmp_path / "baked")).put(key, {"n": 1})
    jitd.configure(cache_dir=tmp_path / "own", cache_path=[tmp_path / "baked"])
    record = runtime.current().store.get(key)
    assert record.body == {"n": 1}
    assert record.header.tier == 1
