//! The choice of experts, their weights, and the sum of what they gave.

use super::{DeviceOps, DeviceSlice, count};
use crate::device::{Arg, DeviceError};

/// As in the source's `ops_router.cl`.
const ROUTER_LANES: usize = 64;

impl DeviceOps {
    /// [`top_k`](crate::kernels::ops::top_k) of each row of `x`, `[rows][n]`, to `chosen`, u32,
    /// `[rows][used]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn top_k(
        &self,
        x: &DeviceSlice,
        n: usize,
        chosen: &DeviceSlice,
        used: usize,
    ) -> Result<(), DeviceError> {
        let rows = chosen_rows(x, n, chosen, used);
        let ([x, x_at], [chosen, chosen_at]) = (x.args(), chosen.args());
        let args = [x, x_at, count(n), chosen, chosen_at, count(used)];
        self.run("op_top_k", [rows, 1], ROUTER_LANES, &args)
    }

    /// What was chosen of each row of `x`, `[rows][n]`, to `out`; `chosen`, which must be within rows, and
    /// `out`: `[rows][used]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn take_chosen(
        &self,
        x: &DeviceSlice,
        n: usize,
        chosen: &DeviceSlice,
        used: usize,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        chosen_rows(x, n, chosen, used);
        assert_eq!(out.len, chosen.len, "room for what was chosen");
        let ([x, x_at], [chosen, chosen_at], [outs, out_at]) = (x.args(), chosen.args(), out.args());
        let args = [x, x_at, count(n), chosen, chosen_at, outs, out_at, count(out.len), count(used)];
        self.run_each("op_take_chosen", out.len, &args)
    }

    /// Divides each row of `x`, `[rows][n]`, by its sum, taken in f32 from left to right, `least_sum` at
    /// least.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `x` is no whole number of rows.
    pub fn normalise(&self, x: &DeviceSlice, n: usize, least_sum: f32) -> Result<(), DeviceError> {
        assert!(n > 0 && x.len.is_multiple_of(n), "{} values in rows of {n}", x.len);
        let (rows, [memory, at]) = (x.len / n, x.args());
        self.run_each("op_normalise", rows, &[memory, at, count(rows), count(n), Arg::F32(least_sum)])
    }

    /// [`Ops::sum_weighted`](crate::kernels::ops::Ops::sum_weighted): `out`: `[rows][n]`; `chosen`: rows of
    /// `x`, u32, which must be within it.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn sum_weighted(
        &self,
        x: &DeviceSlice,
        chosen: &DeviceSlice,
        weights: &DeviceSlice,
        n: usize,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        assert_eq!(chosen.len, weights.len, "rows and their weights");
        assert!(n > 0 && x.len.is_multiple_of(n) && out.len.is_multiple_of(n), "rows of {n}");
        let each = chosen.len / (out.len / n).max(1);
        assert!(each * out.len == chosen.len * n && (each > 0 || out.is_empty()), "{} rows", chosen.len);
        let ([x, x_at], [outs, out_at]) = (x.args(), out.args());
        let ([chosen, chosen_at], [weights, weights_at]) = (chosen.args(), weights.args());
        let args = [
            x,
            x_at,
            chosen,
            chosen_at,
            weights,
            weights_at,
            outs,
            out_at,
            count(out.len),
            count(n),
            count(each),
        ];
        self.run_each("op_sum_weighted", out.len, &args)
    }
}

/// Rows of `n` values, of which `used` each are chosen.
fn chosen_rows(x: &DeviceSlice, n: usize, chosen: &DeviceSlice, used: usize) -> usize {
    assert!(n > 0 && x.len.is_multiple_of(n) && used <= n, "top {used} of {} in rows of {n}", x.len);
    assert_eq!(x.len / n * used, chosen.len, "room for what is chosen");
    x.len / n
}
