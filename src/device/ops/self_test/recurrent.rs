//! Operations that carry a state from token to token.

use super::{Outcome, behind, compared, values};
use crate::device::DeviceConv;
use crate::device::ops::DeviceOps;
use crate::kernels::ops::{CausalConv, scalar};
use crate::quant::testing::Random;

/// Of `n` channels, by one token and by five, which are fewer and more than the window remembers.
pub(super) fn causal_conv(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    for (taps, tokens, has_bias, silu) in
        [(4, 1, true, true), (3, 5, false, false), (5, 3, true, false), (1, 2, false, true)]
    {
        let mut some = |rows: usize| values(random, n)[..rows * n].to_vec();
        let (weight, bias, x) = (some(taps), has_bias.then(|| some(1)), some(tokens));
        let mut window = some(taps - 1);
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
