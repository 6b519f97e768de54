//! exp, tanh, norms, softmax and elementwise operations on one row, generic over the instruction set.
//!
//! Every function is inlined into an instance compiled for the set's features (see the table in `ops`).

use super::gelu::Gelu;
use super::lanes::{Isa, Lanes8, Lanes16, MAGIC};

/// `exp` of sixteen lanes.
///
/// `n = round(x / ln 2)`, `r = x - n ln 2` with ln 2 in two parts, `1 + r + r^2 P(r)` with P a minimax
/// polynomial of degree 4 for the relative error on |r| <= ln(2)/2 (3.1e-9), then the power of two. NaN stays
/// NaN; above 88.73 the result is infinite, below -103.98 zero, between there and -87.34 denormal.
#[inline(always)]
pub(super) fn exp16<I: Isa>(isa: I, x: I::F) -> I::F {
    let x = isa.splat(89.0).min(x);
    let x = isa.splat(-104.0).max(x);
    let (p, biased) = exp_parts(isa, x);
    p.add(isa.splat(1.0)).scale_by_power(biased)
}

/// `(p, n)` with `exp(x) = (1 + p) * 2^n`, n held as `MAGIC + n`.
#[inline(always)]
fn exp_parts<I: Isa>(isa: I, x: I::F) -> (I::F, I::F) {
    let magic = isa.splat(MAGIC);
    let biased = x.mul_add(isa.splat(std::f32::consts::LOG2_E), magic);
    let n = biased.sub(magic);
    let r = n.mul_add(isa.splat(-LN2_HI), x);
    let r = n.mul_add(isa.splat(-LN2_LO), r);
    let p = isa.splat(EXP_P[0]);
    let p = p.mul_add(r, isa.splat(EXP_P[1]));
    let p = p.mul_add(r, isa.splat(EXP_P[2]));
    let p = p.mul_add(r, isa.splat(EXP_P[3]));
    let p = p.mul_add(r, isa.splat(EXP_P[4]));
    (p.mul_add(r.mul(r), r), biased)
}

/// ln 2 rounded to f32, and what that leaves out.
const LN2_HI: f32 = std::f32::consts::LN_2;
const LN2_LO: f32 = (std::f64::consts::LN_2 - LN2_HI as f64) as f32;
/// P, from r^4 down.
const EXP_P: [f32; 5] = [1.381_432e-3, 8.368_851e-3, 4.166_84e-2, 1.666_652e-1, 4.999_999_4e-1];

/// `tanh` of sixteen lanes: `e / (e + 2)` with `e = exp(2x) - 1`, taken from the parts of [`exp16`] without
/// cancellation. NaN stays NaN; from 9.02 on the result is 1.
#[inline(always)]
pub(super) fn tanh16<I: Isa>(isa: I, x: I::F) -> I::F {
    let x = isa.splat(10.0).min(x);
    let x = isa.splat(-10.0).max(x);
    let (p, biased) = exp_parts(isa, x.add(x));
    let power = isa.splat(1.0).scale_by_power(biased);
    let e = p.mul_add(power, power.sub(isa.splat(1.0)));
    e.div(e.add(isa.splat(2.0)))
}

/// `ln(1 + exp(x))` of sixteen lanes, as `max(x, 0) + 2 atanh(z / (2 + z))` with `z = exp(-|x|)`, the inverse
/// tanh by its series, whose argument is at most 1/3. NaN stays NaN; from 17.4 on the result is x itself.
#[inline(always)]
pub(super) fn softplus16<I: Isa>(isa: I, x: I::F) -> I::F {
    let zero = isa.splat(0.0);
    let negated = isa.splat(-0.0).sub(x);
    let z = exp16(isa, negated.min(x));
    let s = z.div(z.add(isa.splat(2.0)));
    let square = s.mul(s);
    let mut series = isa.splat(LN_SERIES[0]);
    for &factor in &LN_SERIES[1..] {
        series = series.mul_add(square, isa.splat(factor));
    }
    // s + s^3 P(s^2), twice: the sum's first term is the largest.
    let half = series.mul_add(square.mul(s), s);
    zero.max(x).add(half.add(half))
}

/// `1/(2k + 1)` from s^12 down to s^0 of P.
const LN_SERIES: [f32; 7] = [1.0 / 15.0, 1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0];

/// Rewrites `x` sixteen lanes at a time.
macro_rules! map {
    ($isa:ident, $x:ident => $value:expr, $slice:expr) => {{
        let (blocks, tail) = $slice.as_chunks_mut::<16>();
        for block in blocks {
            let $x = $isa.load(block);
            $value.store(block);
        }
        if !tail.is_empty() {
            let $x = $isa.load_head(tail);
            $value.store_head(tail);
        }
    }};
    // The same with a second operand of the same length.
    ($isa:ident, $x:ident, $y:ident => $value:expr, $slice:expr, $other:expr) => {{
        let (blocks, tail) = $slice.as_chunks_mut::<16>();
        let (others, other_tail) = $other.as_chunks::<16>();
        for (block, other) in blocks.iter_mut().zip(others) {
            let ($x, $y) = ($isa.load(block), $isa.load(other));
            $value.store(block);
        }
        if !tail.is_empty() {
            let ($x, $y) = ($isa.load_head(tail), $isa.load_head(other_tail));
            $value.store_head(tail);
        }
    }};
}

#[inline(always)]
pub(super) fn silu16<I: Isa>(isa: I, x: I::F) -> I::F {
    let negated = isa.splat(-0.0).sub(x);
    x.div(isa.splat(1.0).add(exp16(isa, negated)))
}

#[inline(always)]
pub(super) fn silu<I: Isa>(isa: I, x: &mut [f32]) {
    map!(isa, x => silu16(isa, x), x);
}

#[inline(always)]
pub(super) fn swiglu<I: Isa>(isa: I, gate: &mut [f32], up: &[f32]) {
    map!(isa, x, u => silu16(isa, x).mul(u), gate, up);
}

#[inline(always)]
pub(super) fn sigmoid16<I: Isa>(isa: I, x: I::F) -> I::F {
    let negated = isa.splat(-0.0).sub(x);
    let one = isa.splat(1.0);
    one.div(one.add(exp16(isa, negated)))
}

#[inline(always)]
pub(super) fn sigmoid<I: Isa>(isa: I, x: &mut [f32]) {
    map!(isa, x => sigmoid16(isa, x), x);
}

#[inline(always)]
pub(super) fn exp<I: Isa>(isa: I, x: &mut [f32]) {
    map!(isa, x => exp16(isa, x), x);
}

#[inline(always)]
pub(super) fn softplus<I: Isa>(isa: I, x: &mut [f32]) {
    map!(isa, x => softplus16(isa, x), x);
}

/// The root of softplus; both are rounded.
#[inline(always)]
pub(super) fn sqrt_softplus<I: Isa>(isa: I, x: &mut [f32]) {
    softplus(isa, x);
    x.iter_mut().for_each(|x| *x = x.sqrt());
}

#[inline(always)]
pub(super) fn gelu<I: Isa>(isa: I, x: &mut [f32]) {
    let gelu = Gelu::get();
    map!(isa, x => gelu.of16(isa, x), x);
}

/// The square of what is positive, 0 for the rest; NaN stays NaN.
#[inline(always)]
pub(super) fn relu_squared<I: Isa>(isa: I, x: &mut [f32]) {
    map!(isa, x => {
        let x = isa.splat(0.0).max(x);
        x.mul(x)
    }, x);
}

#[inline(always)]
pub(super) fn geglu<I: Isa>(isa: I, gate: &mut [f32], up: &[f32]) {
    let gelu = Gelu::get();
    map!(isa, x, u => gelu.of16(isa, x).mul(u), gate, up);
}

/// `x` within ±`limit`; NaN stays NaN.
#[inline(always)]
fn clamp16<I: Isa>(isa: I, x: I::F, limit: f32) -> I::F {
    isa.splat(limit).min(isa.splat(-limit).max(x))
}

#[inline(always)]
pub(super) fn swiglu_oai<I: Isa>(isa: I, gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    let one = isa.splat(1.0);
    map!(isa, x, u => {
        let x = isa.splat(limit).min(x);
        let exponent = isa.splat(alpha).mul(isa.splat(-0.0).sub(x));
        x.div(one.add(exp16(isa, exponent))).mul(clamp16(isa, u, limit).add(one))
    }, gate, up);
}

#[inline(always)]
pub(super) fn swiglu_clamped<I: Isa>(isa: I, gate: &mut [f32], up: &[f32], limit: f32) {
    map!(isa, x, u => isa.splat(limit).min(silu16(isa, x)).mul(clamp16(isa, u, limit)), gate, up);
}

#[inline(always)]
pub(super) fn swiglu_limited<I: Isa>(isa: I, gate: &mut [f32], up: &[f32], limit: f32) {
    map!(isa, x, u => silu16(isa, isa.splat(limit).min(x)).mul(clamp16(isa, u, limit)), gate, up);
}

/// `beta tanh(x / beta) sigmoid(x) linear tanh(u / linear)`; without the last tanh where `linear` is 0.
#[inline(always)]
pub(super) fn situ<I: Isa>(isa: I, gate: &mut [f32], up: &[f32], beta: f32, linear: f32) {
    let (by, cap) = (isa.splat(1.0 / beta), isa.splat(beta));
    let (by_up, cap_up) = (isa.splat(1.0 / linear), isa.splat(linear));
    if linear > 0.0 {
        map!(isa, x, u => {
            let capped = tanh16(isa, x.mul(by)).mul(cap).mul(sigmoid16(isa, x));
            capped.mul(tanh16(isa, u.mul(by_up)).mul(cap_up))
        }, gate, up);
    } else {
        map!(isa, x, u => tanh16(isa, x.mul(by)).mul(cap).mul(sigmoid16(isa, x)).mul(u), gate, up);
    }
}

/// `x = tanh(x * by) * cap`.
#[inline(always)]
pub(super) fn soft_cap<I: Isa>(isa: I, x: &mut [f32], by: f32, cap: f32) {
    map!(isa, x => tanh16(isa, x.mul(isa.splat(by))).mul(isa.splat(cap)), x);
}

#[inline(always)]
pub(super) fn add<I: Isa>(isa: I, acc: &mut [f32], x: &[f32]) {
    map!(isa, a, b => a.add(b), acc, x);
}

#[inline(always)]
pub(super) fn mul<I: Isa>(isa: I, acc: &mut [f32], x: &[f32]) {
    map!(isa, a, b => a.mul(b), acc, x);
}

#[inline(always)]
pub(super) fn scale<I: Isa>(isa: I, x: &mut [f32], by: f32) {
    map!(isa, x => x.mul(isa.splat(by)), x);
}

/// Product and sum rounded apart, as ggml's graph of a mixture of experts does.
#[inline(always)]
pub(super) fn add_scaled<I: Isa>(isa: I, acc: &mut [f32], weight: f32, x: &[f32]) {
    map!(isa, a, e => a.add(isa.splat(weight).mul(e)), acc, x);
}

/// Sums in f64 over eight lanes by index mod 8.
macro_rules! sum64 {
    ($isa:ident, $lanes:ident, $acc:ident => $value:expr, $slice:expr) => {{
        let mut $acc = $isa.zero64();
        let (blocks, tail) = $slice.as_chunks::<16>();
        for block in blocks {
            let (low, high) = $isa.load(block).widen();
            for $lanes in [low, high] {
                $acc = $value;
            }
        }
        if !tail.is_empty() {
            let (low, high) = $isa.load_head(tail).widen();
            for $lanes in [low, high] {
                $acc = $value;
            }
        }
        $acc.sum()
    }};
}

/// The sum of a row, in f64 and rounded once.
#[inline(always)]
pub(super) fn sum<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let (one, _) = isa.splat(1.0).widen();
    sum64!(isa, lanes, acc => lanes.mul_add(one, acc), x) as f32
}

/// `x / rms(x)`, times `weight` unless that is empty.
#[inline(always)]
pub(super) fn rms_norm<I: Isa>(isa: I, x: &mut [f32], weight: &[f32], eps: f32) {
    let sum = sum64!(isa, lanes, acc => lanes.mul_add(lanes, acc), x);
    let mean = (sum / x.len() as f64) as f32;
    scale(isa, x, 1.0 / (mean + eps).sqrt());
    if !weight.is_empty() {
        mul(isa, x, weight);
    }
}

/// `(x - mean(x)) / deviation(x)`, times `weight` and plus `bias` unless these are empty.
#[inline(always)]
pub(super) fn layer_norm<I: Isa>(isa: I, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let (one, _) = isa.splat(1.0).widen();
    let sum = sum64!(isa, lanes, acc => lanes.mul_add(one, acc), x);
    let mean = isa.splat((sum / x.len() as f64) as f32);
    map!(isa, x => x.sub(mean), x);
    let squares = sum64!(isa, lanes, acc => lanes.mul_add(lanes, acc), x);
    let variance = (squares / x.len() as f64) as f32;
    scale(isa, x, 1.0 / (variance + eps).sqrt());
    if !weight.is_empty() {
        mul(isa, x, weight);
    }
    if !bias.is_empty() {
        add(isa, x, bias);
    }
}

/// `x * |like| / |x|`.
#[inline(always)]
pub(super) fn rescale<I: Isa>(isa: I, x: &mut [f32], like: &[f32]) {
    let wanted = sum64!(isa, lanes, acc => lanes.mul_add(lanes, acc), like) as f32;
    let own = sum64!(isa, lanes, acc => lanes.mul_add(lanes, acc), x) as f32;
    let (wanted, own) = (isa.splat(wanted.sqrt()), isa.splat(own.sqrt()));
    map!(isa, x => x.mul(wanted).div(own), x);
}

/// `max(x - cut, 0)`, `cut` so many deviations above the mean; NaN stays NaN.
#[inline(always)]
pub(super) fn cut_below<I: Isa>(isa: I, x: &mut [f32], deviations: f32) {
    let (one, _) = isa.splat(1.0).widen();
    let n = x.len() as f32;
    let sum = sum64!(isa, lanes, acc => lanes.mul_add(one, acc), x);
    let mean = sum as f32 / n;
    let squares = squares_around(isa, x, mean) as f32;
    let deviation = (squares * (1.0 / (n - 1.0))).sqrt();
    let cut = isa.splat(mean + deviation * deviations);
    map!(isa, x => isa.splat(0.0).max(x.sub(cut)), x);
}

/// The sum of `(x - mean)^2`; differences are rounded to f32.
#[inline(always)]
fn squares_around<I: Isa>(isa: I, x: &[f32], mean: f32) -> f64 {
    let mean = isa.splat(mean);
    let (blocks, tail) = x.as_chunks::<16>();
    let mut acc = isa.zero64();
    for block in blocks {
        let (low, high) = isa.load(block).sub(mean).widen();
        acc = high.mul_add(high, low.mul_add(low, acc));
    }
    if !tail.is_empty() {
        // Lanes beyond the end are zeros behind the difference too.
        let mut rest = [0.0; 16];
        isa.load_head(tail).sub(mean).store_head(&mut rest[..tail.len()]);
        let (low, high) = isa.load(&rest).widen();
        acc = high.mul_add(high, low.mul_add(low, acc));
    }
    acc.sum()
}

/// The largest value of `x`, NaN passed over; -inf where there is none.
#[inline(always)]
fn max<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let (blocks, tail) = x.as_chunks::<16>();
    let mut acc = isa.splat(f32::NEG_INFINITY);
    for block in blocks {
        acc = isa.load(block).max(acc);
    }
    let mut lanes = [0.0; 16];
    acc.store(&mut lanes);
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Replaces `x` by `exp(x - max)` and returns `(max, sum)`; the sum over sixteen lanes by index mod 16.
#[inline(always)]
pub(super) fn exp_sum<I: Isa>(isa: I, x: &mut [f32]) -> (f32, f32) {
    let max = max(isa, x);
    let (top, mut sum) = (isa.splat(max), isa.splat(0.0));
    let (blocks, tail) = x.as_chunks_mut::<16>();
    for block in blocks {
        let p = exp16(isa, isa.load(block).sub(top));
        p.store(block);
        sum = sum.add(p);
    }
    if !tail.is_empty() {
        exp16(isa, isa.load_head(tail).sub(top)).store_head(tail);
        sum = sum.add(isa.load_head(tail));
    }
    (max, sum.sum())
}

#[inline(always)]
pub(super) fn softmax<I: Isa>(isa: I, x: &mut [f32]) {
    let (_, sum) = exp_sum(isa, x);
    scale(isa, x, 1.0 / sum);
}

#[inline(always)]
pub(super) fn narrow<I: Isa>(isa: I, from: &[f32], to: &mut [u16]) {
    let (blocks, tail) = from.as_chunks::<16>();
    let (outs, out_tail) = to.as_chunks_mut::<16>();
    for (block, out) in blocks.iter().zip(outs) {
        isa.load(block).store_f16(out);
    }
    if !tail.is_empty() {
        let mut lanes = [0; 16];
        isa.load_head(tail).store_f16(&mut lanes);
        out_tail.copy_from_slice(&lanes[..tail.len()]);
    }
}

/// Rotates neighbours (2i, 2i + 1) of one head; products and sums rounded apart.
#[inline(always)]
pub(super) fn rotate_pairs<I: Isa>(_: I, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &cos), &sin) in x.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
        let [x0, x1] = *pair;
        *pair = [x0 * cos - x1 * sin, x0 * sin + x1 * cos];
    }
}

/// Rotates (i, i + n/2) of one head, n = `x.len()`.
#[inline(always)]
pub(super) fn rotate_halves<I: Isa>(_: I, x: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (low, high) = x.split_at_mut(cos.len());
    for (((low, high), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let (x0, x1) = (*low, *high);
        (*low, *high) = (x0 * cos - x1 * sin, x0 * sin + x1 * cos);
    }
}
