//! The delta rule on a device, and copies of heads, against the CPU's.

use super::{Outcome, behind, compared, values};
use crate::device::DeviceOps;
use crate::device::ops::delta::DeviceDeltaRule;
use crate::kernels::ops::{Decay, DeltaRule, HeadMap, StridedRows, scalar};
use crate::quant::testing::{EXTREMES, Random};

/// A call of the delta rule.
struct DeltaTrial {
    tokens: usize,
    heads: usize,
    key_heads: usize,
    map: HeadMap,
    len: usize,
    by_channel: bool,
    /// Whether queries, keys and values of a token lie side by side, rather than each kind on its own.
    side_by_side: bool,
    /// One in so many values is extreme; 0: none.
    extreme: usize,
}

impl DeltaTrial {
    /// Values around some, of a spread.
    fn some(&self, random: &mut Random, n: usize, [around, spread]: [f32; 2]) -> Vec<f32> {
        let mut value = || match self.extreme > 0 && random.below(self.extreme) == 0 {
            true => EXTREMES[random.below(EXTREMES.len())],
            false => around + spread * random.float(),
        };
        (0..n).map(|_| value()).collect()
    }

    /// Outputs and the state behind the tokens.
    fn check(&self, ops: &DeviceOps, random: &mut Random) -> Outcome {
        let &DeltaTrial { tokens, heads, key_heads, map, len, by_channel, side_by_side, .. } = self;
        let (keys, width) = (key_heads * len, heads * len);
        let (stride, at) = match side_by_side {
            true => (2 * keys + width, [0, keys, 2 * keys]),
            false => (width, [0, tokens * width, 2 * tokens * width]),
        };
        let size = if side_by_side { tokens * stride } else { 3 * tokens * stride };
        let xs = self.some(random, size, [0.0, 1.0 / (len as f32).sqrt()]);
        let decay = self.some(random, tokens * if by_channel { width } else { heads }, [0.5, 0.5]);
        let beta = self.some(random, tokens * heads, [0.5, 0.5]);
        let mut state = self.some(random, width * len, [0.0, 1.0]);

        let on = behind(ops, &xs)?;
        let parts = at.map(|at| on.part(at, size - at));
        let rule = DeviceDeltaRule {
            tokens,
            heads,
            key_heads,
            map,
            len,
            qkv: parts.each_ref(),
            stride,
            decay: &behind(ops, &decay)?,
            by_channel,
            beta: &behind(ops, &beta)?,
        };
        let (state_on, out_on) = (behind(ops, &state)?, behind(ops, &vec![7.0f32; tokens * width])?);
        ops.delta_rule(&rule, &state_on, &out_on)?;

        let rows = |i: usize| match side_by_side {
            true => StridedRows { data: &xs, stride, offset: at[i] },
            false => StridedRows { data: &xs[at[i]..][..tokens * stride], stride, offset: 0 },
        };
        let rule = DeltaRule {
            tokens,
            heads,
            key_heads,
            map,
            len,
            q: rows(0),
            k: rows(1),
            v: rows(2),
            decay: if by_channel { Decay::Channel(&decay) } else { Decay::Head(&decay) },
            beta: &beta,
        };
        let (mut out, mut scratch) = (vec![0.0; tokens * width], vec![0.0; tokens * width]);
        scalar().delta_rule(&rule, &mut state, &mut out, &mut scratch);
        let told = |fault: String| {
            format!("{heads} heads of {len}, {tokens} tokens, {map:?}, by channel {by_channel}: {fault}")
        };
        let faults = [compared(ops, &out_on, &out)?, compared(ops, &state_on, &state)?];
        Ok(faults.into_iter().flatten().next().map(told))
    }
}

/// Heads of every kind, short and long ones.
pub(super) fn delta_rule(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let plain = DeltaTrial {
        tokens: 3,
        heads: 4,
        key_heads: 2,
        map: HeadMap::Tiled,
        len: 1 + n % 45,
        by_channel: false,
        side_by_side: true,
        extreme: 0,
    };
    let kda = DeltaTrial { key_heads: 4, by_channel: true, side_by_side: false, ..plain };
    let trials = [
        DeltaTrial { map: HeadMap::Grouped, ..plain },
        DeltaTrial { tokens: 1, heads: 1, key_heads: 1, len: 128, ..plain },
        DeltaTrial { len: 129 + n % 16, heads: 1, key_heads: 1, ..plain },
        DeltaTrial { tokens: 2, heads: 2, key_heads: 2, len: 64, ..kda },
        DeltaTrial { tokens: 1, extreme: 40, ..plain },
        DeltaTrial { extreme: 300, ..kda },
    ];
    for trial in trials {
        if let Some(fault) = trial.check(ops, random)? {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

/// Heads in rows of two kinds of them, each kind to its own place of wider rows.
pub(super) fn copy_heads(ops: &DeviceOps, random: &mut Random, n: usize) -> Outcome {
    let (rows, heads, lens) = (5, 2, [n.div_ceil(3), n - n.div_ceil(3)]);
    let from = [values(random, n), values(random, n)].concat();
    let to = vec![7.0f32; rows * (heads * n + 1)];
    let (row, on, to_on) = (heads * n + 1, behind(ops, &from)?, behind(ops, &to)?);
    let parts = [(0, 0, lens[0]), (lens[0], 1 + heads * lens[0], lens[1])];
    let mut want = to;
    for (offset, at, len) in parts.into_iter().filter(|(.., len)| *len > 0) {
        ops.copy_heads(&to_on, [row, at, heads * len], &on.part(offset, on.len() - offset), [len, n])?;
        for (head, from) in from.chunks_exact(n).enumerate() {
            let to = head / heads * row + at + head % heads * len;
            want[to..][..len].copy_from_slice(&from[offset..][..len]);
        }
    }
    compared(ops, &to_on, &want)
}
