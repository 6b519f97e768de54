//! The delta rule, and copies that put heads side by side.

use std::sync::Arc;

use super::{DeviceOps, DeviceSlice, count};
use crate::device::{Arg, DeviceError};
use crate::kernels::ops::HeadMap;

/// As in the source's `ops_delta.cl`.
const DELTA_LANES: usize = 128;
const DELTA_ROWS: usize = DELTA_LANES / 16;
const DELTA_FEW: usize = 8;

/// Elements of a head at most.
pub const MOST_DELTA_LEN: usize = 1024;

/// The tokens of one sequence, as [`DeltaRule`](crate::kernels::ops::DeltaRule) has them.
#[derive(Clone, Copy, Debug)]
pub struct DeviceDeltaRule<'a> {
    pub tokens: usize,
    pub heads: usize,
    /// Divides `heads`.
    pub key_heads: usize,
    pub map: HeadMap,
    /// Elements of a head.
    pub len: usize,
    /// Queries, keys and values, all in the same memory: `key_heads * len` values a token, of values `heads *
    /// len`, from the beginning of each `stride` values.
    pub qkv: [&'a DeviceSlice; 3],
    pub stride: usize,
    /// `[tokens][heads]`, or `[tokens][heads][len]` where `by_channel` says so.
    pub decay: &'a DeviceSlice,
    pub by_channel: bool,
    /// `[tokens][heads]`
    pub beta: &'a DeviceSlice,
}

impl DeviceDeltaRule<'_> {
    fn check(&self, state: &DeviceSlice, out: &DeviceSlice) {
        let &DeviceDeltaRule { tokens, heads, key_heads, len, qkv, stride, decay, by_channel, beta, .. } =
            self;
        assert!(key_heads > 0 && heads.is_multiple_of(key_heads), "delta rule: heads");
        assert!((1..=MOST_DELTA_LEN).contains(&len), "delta rule: heads of {len}");
        let keys = key_heads * len;
        for (rows, width) in qkv.into_iter().zip([keys, keys, heads * len]) {
            let holds = tokens == 0 || rows.len >= (tokens - 1) * stride + width;
            assert!(width <= stride && holds, "delta rule: rows");
            assert!(Arc::ptr_eq(&rows.memory, &qkv[0].memory), "delta rule: rows in different memory");
        }
        let decays = tokens * heads * if by_channel { len } else { 1 };
        assert!(decay.len == decays && beta.len == tokens * heads, "delta rule: decays and strengths");
        assert_eq!(state.len, heads * len * len, "delta rule: state");
        assert_eq!(out.len, tokens * heads * len, "delta rule: output");
    }
}

impl DeviceOps {
    /// [`Ops::delta_rule`](crate::kernels::ops::Ops::delta_rule): `state`: `[heads][len][len]`, changed in
    /// place; `out`: `[tokens][heads][len]`.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn delta_rule(
        &self,
        rule: &DeviceDeltaRule<'_>,
        state: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        rule.check(state, out);
        let &DeviceDeltaRule { tokens, heads, key_heads, map, len, qkv, stride, .. } = rule;
        if tokens == 0 {
            return Ok(());
        }
        let ([states, state_at], [outs, out_at]) = (state.args(), out.args());
        let ([decays, decay_at], [betas, beta_at]) = (rule.decay.args(), rule.beta.args());
        let [xs, q_at] = qkv[0].args();
        let [k_at, v_at] = [1, 2].map(|i| Arg::U64(qkv[i].at as u64));
        let args = [
            states,
            state_at,
            xs,
            q_at,
            k_at,
            v_at,
            count(stride),
            decays,
            decay_at,
            count(usize::from(rule.by_channel)),
            betas,
            beta_at,
            outs,
            out_at,
            count(tokens),
            count(heads),
            count(key_heads),
            count(usize::from(map == HeadMap::Grouped)),
            count(len),
            Arg::F32(1.0 / (len as f32).sqrt()),
        ];
        let kernel = if len <= 16 * DELTA_FEW { "op_delta_rule" } else { "op_delta_rule_long" };
        self.run(kernel, [len.div_ceil(DELTA_ROWS), heads], DELTA_LANES, &args)
    }

    /// Copies heads of `len` values, which lie `stride` values apart, to `width` values from `at` on in each
    /// row of `to`, whose rows are of `row` values.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together.
    pub fn copy_heads(
        &self,
        to: &DeviceSlice,
        [row, at, width]: [usize; 3],
        from: &DeviceSlice,
        [len, stride]: [usize; 2],
    ) -> Result<(), DeviceError> {
        let whole = len > 0 && width.is_multiple_of(len) && at + width <= row && to.len.is_multiple_of(row);
        assert!(whole && len <= stride, "{width} of {row} values in heads of {len} of {stride}");
        let (n, heads) = (to.len / row * width, to.len / row * width / len);
        assert!(heads == 0 || (heads - 1) * stride + len <= from.len, "{heads} heads in {}", from.len);
        let ([x_memory, _], [y_memory, y_at]) = (to.args(), from.args());
        let x_at = Arg::U64((to.at + at) as u64);
        let [heads, len, stride] = [width / len, len, stride].map(count);
        let args = [x_memory, x_at, count(n), count(row), y_memory, y_at, heads, len, stride];
        self.run_each("op_copy_heads", n, &args)
    }
}
