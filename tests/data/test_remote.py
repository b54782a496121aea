"""Images in buckets, on web servers and in Parquet files: the same images as on this machine, with few requests."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import actstats
from actstats import remote
from actstats.data import open_source
from actstats.data.objects import Shared
from actstats.data.preprocessing import Preprocessing
from actstats.errors import ActstatsError
from tests.conftest import SmallNet, files_of, photograph
from tests.models.server import serving
from tests.s3 import BUCKET

COUNT = 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACTSTATS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as a folder by class, as two WebDataset shards, and as two Parquet files of the hub's kind."""
    root = tmp_path_factory.mktemp("made")
    encoded = []
    for index in range(COUNT):
        written = io.BytesIO()
        photograph(index).save(written, format="png")
        encoded.append(written.getvalue())
        file = root / "folder" / ("cat", "dog")[index % 2] / f"{index:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded[-1])
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    kind = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps(names)},
    )
    for shard in range(2):
        chosen = range(shard * COUNT // 2, (shard + 1) * COUNT // 2)
        (root / "shards").mkdir(exist_ok=True)
        with tarfile.open(root / "shards" / f"s-{shard}.tar", "w") as tar:
            for index in chosen:
                for ending, data in ((".cls", b"%d" % (index % 2)), (".png", encoded[index])):
                    entry = tarfile.TarInfo(f"{index:03}{ending}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        rows = [{"image": {"bytes": encoded[i], "path": None}, "label": i % 2} for i in chosen]
        (root / "parquet").mkdir(exist_ok=True)
        pq.write_table(
            pa.Table.from_pylist(rows, kind), root / "parquet" / f"p-{shard}.parquet", row_group_size=10
        )
    return root


@pytest.fixture
def uploaded(made: Path, s3) -> str:
    """The URL of the same files in a bucket."""
    client = boto3.client("s3")
    for file in made.rglob("*.*"):
        if file.is_file():
            client.upload_file(str(file), BUCKET, f"made/{file.relative_to(made).as_posix()}")
    s3.seen.clear()
    remote_caches_cleared()
    return f"s3://{BUCKET}/made"


def remote_caches_cleared() -> None:
    from actstats.data import objects

    objects._opened.cache_clear()


def assert_same(found, expected) -> None:
    assert (found.paths, found.classes) == (expected.paths, expected.classes)
    np.testing.assert_array_equal(found.labels, expected.labels)
    assert found.fingerprint == expected.fingerprint
    for index in range(len(expected)):
        assert found.image(index).tobytes() == expected.image(index).tobytes()


@pytest.mark.parametrize("what", ["folder", "shards", "shards/s-{0..1}.tar", "shards/s-1.tar", "parquet"])
@pytest.mark.parametrize("limit", [None, 20])
def test_images_in_a_bucket_are_those_on_the_disk(what, limit, made, uploaded):
    assert_same(
        open_source(f"{uploaded}/{what}", limit=limit),
        open_source(f"{made}/{what}", limit=limit),
    )


@pytest.mark.parametrize(("what", "most"), [("shards", 6), ("parquet", 16)])
def test_requests_are_few_and_the_index_is_kept(what, most, uploaded, s3):
    source = open_source(f"{uploaded}/{what}")
    indexed = [path for method, path in s3.seen if method == "GET"]
    s3.seen.clear()
    for index in range(COUNT):
        source.read(index)
    assert len(s3.seen) <= most
    assert len(s3.seen) < len(indexed) + most
    s3.seen.clear()
    again = open_source(f"{uploaded}/{what}")
    assert (again.fingerprint, again.labels.tolist()) == (source.fingerprint, source.labels.tolist())
    # The listing, and the end of each Parquet file: what was read of each is known by its size and version.
    gets = [path for method, path in s3.seen if method == "GET" and "list-type" not in path]
    assert len(gets) <= (0 if what == "shards" else 4)


def test_a_sweep_of_a_bucket_into_a_bucket_is_that_of_the_disk(made, uploaded, s3, tmp_path):
    s3.refused_every = 10
    small = SMALL | {"partition_size": 12}
    actstats.sweep(SmallNet(), made / "shards", tmp_path / "s.zarr", **small)
    actstats.sweep(SmallNet(), f"{uploaded}/shards", tmp_path / "from.zarr", **small)
    actstats.sweep(SmallNet(), f"{uploaded}/shards", f"s3://{BUCKET}/s.zarr", **small)
    assert s3.refused > 5
    assert files_of(tmp_path / "from.zarr") == files_of(tmp_path / "s.zarr")
    there = actstats.open_dataset(f"s3://{BUCKET}/s.zarr").drop_vars("provenance").load()
    assert there.equals(actstats.open_dataset(tmp_path / "s.zarr").drop_vars("provenance").load())
    plan = actstats.open_sweep(f"s3://{BUCKET}/s.zarr", trust=True)
    assert plan.images().image(3).size == (96, 80)


@pytest.mark.parametrize("what", ["shards/s-{0..1}.tar", "parquet/p-{0..1}.parquet"])
def test_images_on_a_web_server_that_is_busy_now_and_then(what, made):
    with serving() as server:
        folder = what.partition("/")[0]
        for file in (made / folder).iterdir():
            server.files[f"/{folder}/{file.name}"] = file.read_bytes()
        server.busy = [503, 429, 500]
        remote_caches_cleared()
        found = open_source(server.url(f"/{what}"))
        server.busy = [429, 503]
        assert_same(found, open_source(f"{made}/{what}"))
        assert not server.busy


def test_images_that_a_bucket_lost_are_told_apart(uploaded, s3):
    folder, shards = open_source(f"{uploaded}/folder"), open_source(f"{uploaded}/shards")
    client = boto3.client("s3")
    for key in ("folder/cat/002.png", "shards/s-0.tar"):
        client.delete_object(Bucket=BUCKET, Key=f"made/{key}")
    with pytest.raises(actstats.data.ImageError, match="the file does not exist"):
        folder.image(1)
    with pytest.raises(ActstatsError, match=r"there is no s3://.*s-0.tar; completed partitions are kept"):
        shards.image(1)


SMALL = {
    "preprocessing": Preprocessing.imagenet(size=32, resize=36),
    "batch_size": 8,
    "partition_size": 10,
    "metrics": ["mean", "top"],
    "device": "cpu",
}


@pytest.mark.parametrize("what", ["folder", "shards", "parquet"])
def test_a_body_that_is_cut_short_is_fetched_again(what, made, uploaded, s3, tmp_path, monkeypatch):
    monkeypatch.setattr("actstats.data.patience.WAITS", (0.01,) * 4)
    expected = actstats.sweep(SmallNet(), made / what, tmp_path / "s.zarr", **SMALL)
    source = open_source(f"{uploaded}/{what}")
    s3.cut_every = 3
    found = actstats.sweep(SmallNet(), source, tmp_path / "from.zarr", **SMALL)
    assert s3.cut
    assert found.failures == expected.failures == {}
    assert files_of(tmp_path / "from.zarr") == files_of(tmp_path / "s.zarr")


def test_an_object_that_the_server_fails_to_send_is_missing_until_a_rerun(
    made, uploaded, s3, tmp_path, monkeypatch
):
    monkeypatch.setattr("actstats.data.patience.WAITS", (0.01,) * 4)
    monkeypatch.setattr("actstats.data.objects._PATIENCE", 0.05)
    actstats.sweep(SmallNet(), made / "folder", tmp_path / "s.zarr", **SMALL)
    for status, code in ((500, "InternalError"), (403, "InvalidObjectState")):
        s3.answers = {"004.png": (status, code)}
        remote_caches_cleared()
        store = tmp_path / f"{status}.zarr"
        first = actstats.sweep(SmallNet(), f"{uploaded}/folder", store, **SMALL)
        assert list(first.failures) == ["cat/004.png"]
        assert first.progress.unavailable == 1
        assert code in first.failures["cat/004.png"] or str(status) in first.failures["cat/004.png"]
        assert actstats.open_dataset(store)["status"].values.sum() == 1
        s3.answers = {}
        again = actstats.sweep(SmallNet(), f"{uploaded}/folder", store, **SMALL)
        assert (again.failures, again.partitions) == ({}, 1)
        assert files_of(store) == files_of(tmp_path / "s.zarr")


@pytest.mark.parametrize(("what", "name"), [("shards", "s-0.tar"), ("parquet", "p-1.parquet")])
def test_an_object_replaced_while_it_is_read_is_noticed(what, name, made, uploaded):
    source = open_source(f"{uploaded}/{what}")
    data = bytearray((made / what / name).read_bytes())
    data[len(data) // 2] ^= 1
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"made/{what}/{name}", Body=bytes(data))
    with pytest.raises(
        ActstatsError, match=f"{name} has been replaced since it was opened; completed partitions"
    ):
        list(map(source.read, range(COUNT)))


def test_a_token_that_has_expired_stops_the_sweep_and_is_called_that(uploaded, s3, tmp_path):
    source = open_source(f"{uploaded}/folder")
    s3.answers = {".png": (400, "ExpiredToken")}
    with pytest.raises(
        ActstatsError, match=r"the token for s3://\S+ has expired \(ExpiredToken\); renew the cred"
    ):
        actstats.sweep(SmallNet(), source, tmp_path / "s.zarr", **SMALL)


@pytest.mark.parametrize(
    ("text", "said", "passes"),
    [
        (
            "status code: 400 Bad: <Error><Code>ExpiredToken</Code></Error>",
            "has expired (ExpiredToken)",
            False,
        ),
        (
            "status code: 403 Forbidden: <Error><Code>ExpiredTokenException</Code></Error>",
            "has expired",
            False,
        ),
        ("status code: 403 Forbidden: <Message>Request has expired</Message>", "has expired", False),
        (
            "the SSO session associated with this profile has expired or is otherwise invalid",
            "has expired",
            False,
        ),
        (
            "status code: 403 Forbidden: <Message>Signature not valid in the specified time frame",
            "expired",
            False,
        ),
        (
            "status code: 403 Forbidden: <Error><Code>AccessDenied</Code></Error>",
            "denied (AccessDenied)",
            True,
        ),
        ("invalid peer certificate: Expired", "does not respond", True),
        ("status code: 503 Service Unavailable", "responds with 503", True),
        ("status code: 301 Moved Permanently", "check AWS_REGION", False),
        ("operation timed out", "does not respond (operation timed out)", True),
    ],
)
def test_errors_of_a_server_that_may_pass_are_told_from_others(text, said, passes):
    from actstats.support import URL

    message, may_pass = remote._reason(URL("s3://bucket/val"), text)
    assert said in message
    assert may_pass is passes


def test_a_bucket_that_fails_for_many_images_stops_the_sweep(uploaded, s3, tmp_path, monkeypatch):
    monkeypatch.setattr("actstats.data.patience.WAITS", (0.01,) * 4)
    monkeypatch.setattr("actstats.data.patience._IN_A_ROW", 6)
    source = open_source(f"{uploaded}/folder")
    s3.answers = {f"{index:03}.png": (403, "AccessDenied") for index in range(12, COUNT)}
    remote_caches_cleared()
    with pytest.raises(ActstatsError, match=r"6 images in a row could not be read \(access to .* is denied"):
        actstats.sweep(SmallNet(), source, tmp_path / "s.zarr", **SMALL)


KEYS = [
    "a//1.png",
    "//2.png",
    "./3.png",
    "b/../4.png",
    "50% off/5.png",
    "a%20b/6.png",
    "n#1/7.png",
    "q?/8.png",
]
KEYS += [
    "c d/9.png",
    "caf\u00e9/10.png",
    "cafe\u0301/11.png",
    "p+q/12.png",
    "w[1]*/13.png",
    "~t/14.png",
    ".h/15.png",
]


@pytest.mark.parametrize("folder", ["val", "50% o#f?/a+b", "val//x"])
def test_keys_of_any_characters_are_listed_and_read(folder, s3):
    from tests.data.images import encoded, picture

    client, data = boto3.client("s3"), {}
    for number, key in enumerate(KEYS):
        data[key] = encoded(picture(8, 8, seed=number))
        client.put_object(Bucket=BUCKET, Key=f"{folder}/{key}", Body=data[key])
    client.put_object(Bucket=BUCKET, Key=f"{folder}-other/16.png", Body=b"")
    remote_caches_cleared()
    source = open_source(f"s3://{BUCKET}/{folder}")
    assert source.paths == sorted(key for key in KEYS if not key.startswith(".h"))
    for index, path in enumerate(source.paths):
        assert source.read(index) == data[path]


@pytest.mark.parametrize(
    "name",
    ["val.tar", "my val.tar", "caf\u00e9.tar", "a+b.tar", "a%2Fb.tar", "50%25.tar", "a%20b.tar", "%E9.tar"],
)
@pytest.mark.parametrize("folder", ["", "/my%20set", "/a%2Fb/caf%C3%A9"])
def test_the_address_of_a_tar_on_the_web_is_used_as_it_is(name, folder, made):
    """Names as people type them, and as a browser shows them: only what cannot be in an address is escaped."""
    from urllib.parse import quote, unquote_to_bytes

    with serving() as server:
        remote_caches_cleared()
        asked = f"{folder}/{name}"
        there = unquote_to_bytes(quote(asked, safe="/%+"))
        with_escapes = quote(asked, safe="/%+")
        server.files[with_escapes] = (made / "shards" / "s-0.tar").read_bytes()
        assert len(open_source(server.url(asked))) == COUNT // 2
        assert {unquote_to_bytes(path) for path, _ in server.seen} == {there}
        assert ("%2F" in asked) == any("%2F" in path for path, _ in server.seen)


def test_what_cannot_be_opened_is_told_in_one_line(made, uploaded, tmp_path, monkeypatch):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"image": [b"a"], "label": ["cat"]}), tmp_path / "words.parquet")
    (tmp_path / "no.parquet").write_text("not Parquet")
    for spec, message in {
        "s3://not-there/images": "bucket s3://not-there does not exist",
        f"s3://{BUCKET}/nothing": "no images below s3://",
        f"{uploaded}/shards/s-9.tar": r"there is no s3://.*s-9\.tar",
        "https://127.0.0.1/images": "a web server does not list its files; name tar or parquet files",
        f"{tmp_path}/text.parquet": "has no column 'image' with the bytes of images; its columns are text",
        f"{tmp_path}/words.parquet": "must contain class numbers, not string",
        f"{tmp_path}/no.parquet": "is not a complete, readable Parquet file",
    }.items():
        with pytest.raises(ActstatsError, match=message) as error:
            open_source(spec)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(remote, "FIRST_PATIENCE", 0.3)
    with pytest.raises(ActstatsError, match="does not respond"):
        open_source("http://127.0.0.1:9/a.tar")


def test_threads_share_what_was_fetched_and_meet_its_error():
    from concurrent.futures import ThreadPoolExecutor

    calls: list[int] = []

    def fetch(number: int) -> int:
        calls.append(number)
        if number == 7:
            raise ValueError("no 7")
        return number * 2

    shared = Shared(fetch, 100)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shared.get, [n for n in range(6) for _ in range(20)])) == [
            2 * n for n in range(6) for _ in range(20)
        ]
    assert len(calls) == len(set(calls)) <= 7
    with pytest.raises(ValueError, match="no 7"):
        shared.get(7)
