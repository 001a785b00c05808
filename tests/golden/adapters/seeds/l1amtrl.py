"""L1-A-MTRL: relevance by the linear program and by the lasso, and what is drawn by it."""

from __future__ import annotations

import numpy as np

from golden.adapters.seeds import seed
from golden.adapters.seeds.close import assert_equal
from golden.records import Record
from mtobal.data.samplers.l1_a_mtrl import allocate, lasso_relevance, sparsest_relevance


@seed("l1amtrl")
def l1_a_mtrl(record: Record) -> None:
    heads, target = np.array(record["W"]), np.array(record["w_target"])
    sparsest = sparsest_relevance(heads, target)
    lasso = lasso_relevance(heads, target, record["lasso_lambda"])
    euclidean = np.array(record["nu2"])  # of the method before
    assert_equal(sparsest, record["nu1"], "sparsest relevance", 1e-9)
    assert_equal(lasso, record["nu_lasso"], "relevance by the lasso", 1e-9)
    total, least = record["beta2"], record["N_min"]
    assert_equal(allocate(lasso, total, least), record["allocation_l1(nu_lasso)"], "numbers of samples")
    assert_equal(allocate(euclidean**2, total, least), record["allocation_l2(nu2^2)"], "numbers by squares")
    assert_equal(np.abs(sparsest).sum(), record["l1_norms"]["nu1"], "sum of the sparsest relevance", 1e-9)
    assert np.abs(sparsest).sum() <= record["l1_norms"]["nu2"]
