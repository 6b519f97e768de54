//! Operations that carry a state from token to token.

use super::{Outcome, behind, compared};
use crate::device::ops::MOST_STATE_LEN;
use crate::device::{DeviceConv, DeviceOps, DeviceScan};
use crate::kernels::ops::{CausalConv, ChannelRows, ChannelScan, SelectiveScan, scalar};
use crate::quant::testing::{EXTREMES, Random};

/// Ordinary values, of which some are of every kind if that is wanted: sums are to have ends all the same.
fn some(random: &mut Random, len: usize, odd: bool) -> Vec<f32> {
    let mut value = || match random.below(100) {
        kind if odd && kind < EXTREMES.len() / 2 => EXTREMES[random.below(EXTREMES.len())],
        _ => random.float() * 2.0,
    };
    (0..len).map(|_| value()).collect()
}

/// Of `n` channels, by fewer tokens than the window remembers and by more.
pub(super) fn causal_conv(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let cases = [(4, 1, true, true), (3, 5, false, false), (5, 3, true, false), (1, 2, false, true)];
    for (taps, tokens, biased, silu) in cases {
        let weight = some(random, taps * n, true);
        let bias = biased.then(|| some(random, n, true));
        let x = some(random, tokens * n, true);
        let mut window = some(random, (taps - 1) * n, true);
        let there = DeviceConv {
            channels: n,
            weight: behind(ops, &weight)?,
            bias: bias.as_ref().map(|bias| behind(ops, bias)).transpose()?,
        };
        let (x_on, window_on, out_on) = (behind(ops, &x)?, behind(ops, &window)?, ops.allocate(x.len())?);
        ops.causal_conv(&there, silu, &x_on, &window_on, &out_on)?;
        let mut out = vec![0.0; x.len()];
        let conv = CausalConv { channels: n, weight: &weight, bias: bias.as_deref(), silu };
        scalar().causal_conv(&conv, &x, &mut window, &mut out);
        for (got, want) in [(&out_on, &out), (&window_on, &window)] {
            if let Some(fault) = compared(ops, got, want)? {
                return Ok(Some(format!("{taps} taps, {tokens} tokens: {fault}")));
            }
        }
    }
    Ok(None)
}

/// Of states of `n` values a row, as far as there are such.
pub(super) fn selective_scan(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let n = n.min(MOST_STATE_LEN);
    for ([heads, head_len, groups], tokens, odd) in
        [([4, 3, 2], 3, false), ([3, 5, 1], 1, true), ([2, 4, 2], 2, true)]
    {
        let (inner, group) = (heads * head_len, groups * n);
        let [a, d] = [some(random, heads, odd), some(random, heads, odd)];
        let xbc = some(random, tokens * (inner + 2 * group), odd);
        let dt = some(random, tokens * heads, odd);
        let mut state = some(random, inner * n, odd);
        let there = DeviceScan { head_len, groups, state_len: n, a: behind(ops, &a)?, d: behind(ops, &d)? };
        let (xbc_on, dt_on, state_on) = (behind(ops, &xbc)?, behind(ops, &dt)?, behind(ops, &state)?);
        let out_on = ops.allocate(tokens * inner)?;
        ops.selective_scan(&there, &xbc_on, &dt_on, &state_on, &out_on)?;
        let scan = SelectiveScan { head_len, groups, state_len: n, a: &a, d: &d };
        let mut out = vec![0.0; tokens * inner];
        scalar().selective_scan(&scan, &xbc, &dt, &mut state, &mut vec![0.0; tokens * inner], &mut out);
        for (got, want) in [(&out_on, &out), (&state_on, &state)] {
            if let Some(fault) = compared(ops, got, want)? {
                return Ok(Some(format!("{heads} heads, {tokens} tokens: {fault}")));
            }
        }
    }
    Ok(None)
}

/// The same, each value with a rate of its own.
pub(super) fn channel_scan(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let n = n.min(MOST_STATE_LEN);
    for (channels, tokens, odd) in [(5, 3, false), (9, 1, true), (4, 2, true)] {
        let [a, d] = [some(random, channels * n, odd), some(random, channels, odd)];
        let [x, dt] = [(); 2].map(|()| some(random, tokens * channels, odd));
        let [b, c] = [(); 2].map(|()| some(random, tokens * n, odd));
        let mut state = some(random, channels * n, odd);
        let there =
            DeviceScan { head_len: 1, groups: 1, state_len: n, a: behind(ops, &a)?, d: behind(ops, &d)? };
        let (x_on, dt_on, state_on) = (behind(ops, &x)?, behind(ops, &dt)?, behind(ops, &state)?);
        let (b_on, c_on, out_on) = (behind(ops, &b)?, behind(ops, &c)?, ops.allocate(x.len())?);
        ops.channel_scan(&there, [&x_on, &dt_on], [&b_on, &c_on], &state_on, &out_on)?;
        let (mut out, mut scratch) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        let scan = ChannelScan { state_len: n, a: &a, d: &d };
        let rows = ChannelRows { x: &x, dt: &dt, b: &b, c: &c };
        scalar().channel_scan(&scan, &rows, &mut state, &mut scratch, &mut out);
        for (got, want) in [(&out_on, &out), (&state_on, &state)] {
            if let Some(fault) = compared(ops, got, want)? {
                return Ok(Some(format!("{channels} channels, {tokens} tokens: {fault}")));
            }
        }
    }
    Ok(None)
}
