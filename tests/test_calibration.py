"""The calibration's file, its regression and where it is kept; nothing here needs torch."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import save
from scipy.spatial.distance import pdist

import hsd
from hsd.calibration import Calibration, Identity, store
from hsd.calibration.fit import FEWEST, Ridge, coordinates, distances, fit, pearson, root_mean_square

IDENTITY = Identity("Some", "ab" * 32, (0.5, -1.0, 1e-9))


def make(**changes) -> Calibration:
    rng = np.random.default_rng(3)
    values = {
        "matrix": rng.normal(size=(6, 2)),
        "mean": rng.normal(size=6),
        "weights": np.array([1.0, 4.0, 0.25]),
        "tau": 0.5,
        "correlation": 0.9,
        "cosine_correlation": 0.2,
        "scale": 3.0,
        "levels": (0.0, 0.5),
        "ridge": 0.1,
        "prompts": 20,
        "identity": IDENTITY,
        "model": "some",
        "version": "1",
        **changes,
    }
    return Calibration(**values)


def problem(n=60, d=8, m=30, noise=0.0):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(n, d)) + 5.0
    return X, X @ rng.normal(size=(d, m)) + noise * rng.normal(size=(n, m)) - 7.0


# -- the regression


def test_ridge_without_penalty_is_least_squares():
    X, Y = problem(noise=0.3)
    design = np.concatenate([X, np.ones((len(X), 1))], 1)
    expected = np.linalg.lstsq(design, Y, rcond=None)[0][:-1]
    assert Ridge(X, Y)(1e-12) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("n", [60, 6], ids=["tall", "wide"])
def test_ridge_is_its_closed_form(n):
    X, Y = problem(n=n, noise=0.3)
    centred = X - X.mean(0)
    expected = np.linalg.solve(centred.T @ centred + 2.5 * np.eye(8), centred.T @ (Y - Y.mean(0)))
    assert Ridge(X, Y)(2.5) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("m", [4, 500])
def test_coordinates_keep_distances(m):
    values = np.random.default_rng(0).normal(size=(20, m)).astype(np.float32) + 10.0
    assert coordinates(values).shape[1] <= 20
    assert distances(coordinates(values)) == pytest.approx(pdist(values.astype(np.float64)), rel=1e-6)


def test_a_linear_model_is_found():
    X, Y = problem()
    found = fit(X, Y.astype(np.float32))
    assert found.correlation > 0.999 > found.cosine_correlation
    mapped = (X - found.mean) @ found.matrix
    assert root_mean_square(mapped) == pytest.approx(1.0)
    assert pearson(pdist(mapped), pdist(Y)) > 0.99
    assert found.scale == pytest.approx(np.sqrt((pdist(Y) ** 2).mean()), rel=1e-5)


def test_the_rank_is_as_low_as_the_targets():
    X, Y = problem()
    Y[:, 2:] = 0.0
    assert fit(X, Y).matrix.shape == (8, 2)


def test_of_noise_nothing_is_learnt():
    rng = np.random.default_rng(2)
    assert abs(fit(rng.normal(size=(200, 8)), rng.normal(size=(200, 40))).correlation) < 0.1


def test_the_penalty_shrinks_what_is_noise():
    X, Y = problem(n=24, d=20, noise=30.0)
    few = fit(X, Y)
    assert few.ridge > fit(*problem(n=24, d=20)).ridge


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, Y: (X[: FEWEST - 1], Y[: FEWEST - 1]), "15 prompts are too few"),
        (lambda X, Y: (X * 0.0, Y), "the vectors of all prompts are equal"),
        (lambda X, Y: (X, Y * 0.0), "the predictions of all prompts are equal"),
        (lambda X, Y: (X, np.ones((len(Y), 100))), "the predictions of all prompts are equal"),  # more than prompts
        (lambda X, Y: (np.where(np.arange(60)[:, None] == 7, np.nan, X), Y), "the vectors of prompt 7"),
    ],
)
def test_what_cannot_be_fitted(change, message):
    with pytest.raises(ValueError, match=message):
        fit(*change(*problem()))


# -- the calibration


def test_transform():
    calibration = make()
    vectors = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    expected = (vectors.astype(np.float64) - calibration.mean) @ calibration.matrix.astype(np.float64)
    assert calibration.transform(vectors) == pytest.approx(expected, abs=1e-5)
    assert calibration.transform(vectors).dtype == np.float32
    with pytest.raises(ValueError, match=r"shape \(5, 4\).*takes \(N, 6\)"):
        calibration.transform(vectors[:, :4])


def test_weights_at():
    calibration = make()
    assert calibration.weights_at(3) == pytest.approx([1.0, 4.0, 0.25])
    many = calibration.weights_at(30)
    assert many.shape == (30,)
    assert (many > 0).all()
    assert many.max() <= 4.0 + 1e-9


def test_round_trip(tmp_path):
    before = make()
    before.save(tmp_path / "c.safetensors")
    after = Calibration.load(tmp_path / "c.safetensors")
    for field in dataclasses.fields(Calibration):
        assert np.array_equal(getattr(after, field.name), getattr(before, field.name)), field.name
    assert after.digest == before.digest != make(tau=0.6).digest
    with pytest.raises(ValueError, match="read-only"):
        after.matrix[0] = 0.0


def _file(path, change=lambda numbers, arrays: None, metadata=True):
    make().save(path)
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    numbers = json.loads(header["__metadata__"]["hsd_calibration"])
    calibration = make()
    arrays = {name: np.array(getattr(calibration, name)) for name in ("matrix", "mean", "weights")}
    change(numbers, arrays)
    path.write_bytes(save(arrays, {"hsd_calibration": json.dumps(numbers)} if metadata else None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n, a: n.update(format=2), "format is 2"),
        (lambda n, a: n.pop("tau"), "'tau' is missing"),
        (lambda n, a: n.update(tau=float("nan")), "tau is"),
        (lambda n, a: n.update(tau=True), "tau is True"),
        (lambda n, a: n.update(tau=-1.0), "tau is"),
        (lambda n, a: n.update(tau=10**400), "too large"),
        (lambda n, a: n.update(correlation=1.5), "correlation is 1.5"),
        (lambda n, a: n.update(levels="x"), "levels is not a list"),
        (lambda n, a: n.update(levels=[[1]]), r"levels is \[1\]"),
        (lambda n, a: n.update(prompts=0), "prompts is 0"),
        (lambda n, a: n.update(prompts="many"), "prompts is 'many'"),
        (lambda n, a: n.update(family=3), "family is not a text"),
        (lambda n, a: n.update(some_weights=[float("inf")]), "identity"),
        (lambda n, a: a.pop("mean"), "'mean' is missing"),
        (lambda n, a: a.update(mean=a["mean"][:4]), "the mean"),
        (lambda n, a: a.update(mean=a["mean"].astype(np.float64)), "mean is F64"),
        (lambda n, a: a.update(matrix=a["matrix"].T.copy()), r"the matrix is \(2, 6\)"),
        (lambda n, a: a.update(matrix=a["matrix"] * np.inf), "nan or infinite"),
        (lambda n, a: a.update(weights=a["weights"] * 0.0), "positive"),
        (lambda n, a: a.update(weights=a["weights"][:0]), "weights have shape"),
    ],
)
def test_bad_files_are_refused(tmp_path, change, message):
    path = tmp_path / "c.safetensors"
    _file(path, change)
    with pytest.raises(hsd.Error, match=rf"(?s)c.safetensors is not a calibration that can be used: .*{message}"):
        Calibration.load(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0[[[[[[[[", b"\x02\0\0\0\0\0\0\0[]"])
def test_hostile_bytes_are_refused(tmp_path, data):
    (tmp_path / "c").write_bytes(data)
    with pytest.raises(hsd.Error, match="not a calibration"):
        Calibration.load(tmp_path / "c")


def test_every_cut_file_is_refused(tmp_path):
    make().save(tmp_path / "c")
    data = (tmp_path / "c").read_bytes()
    for length in range(0, len(data), 37):
        (tmp_path / "c").write_bytes(data[:length])
        with pytest.raises(hsd.Error, match="not a calibration"):
            Calibration.load(tmp_path / "c")


def test_a_file_of_other_tensors_is_refused(tmp_path):
    _file(tmp_path / "c", metadata=False)
    with pytest.raises(hsd.Error, match="no metadata of a calibration"):
        Calibration.load(tmp_path / "c")
    with pytest.raises(FileNotFoundError):
        Calibration.load(tmp_path / "nowhere")


# -- where it is kept


def test_identities_match_in_any_dtype():
    rounded = tuple(float(np.float16(w)) for w in IDENTITY.weights)
    assert dataclasses.replace(IDENTITY, weights=rounded).matches(IDENTITY)
    assert not dataclasses.replace(IDENTITY, weights=(0.5, -1.02, 0.0)).matches(IDENTITY)
    assert not dataclasses.replace(IDENTITY, weights=(0.5,)).matches(IDENTITY)
    assert not dataclasses.replace(IDENTITY, family="Other").matches(IDENTITY)


def test_it_is_found_by_identity():
    first = store.keep(make())
    other = dataclasses.replace(IDENTITY, weights=(0.5, -2.0, 0.0))
    store.keep(make(identity=other, tau=0.7))
    found = store.find(IDENTITY.key, lambda: IDENTITY)
    assert found is not None
    assert found.tau == 0.5
    store.keep(make(tau=0.9))  # in place of the first
    found = store.find(IDENTITY.key, lambda: IDENTITY)
    assert found is not None
    assert found.tau == 0.9
    assert len(list(first.parent.iterdir())) == 2
    assert store.find("Other-0123", lambda: pytest.fail("no file, but the identity was looked up")) is None


def test_a_broken_file_is_ignored_with_a_warning():
    store.keep(make()).write_bytes(b"broken")
    with pytest.warns(UserWarning, match="a calibration is ignored: .*not a calibration"):
        assert store.find(IDENTITY.key, lambda: IDENTITY) is None
