//! Keys and values stored on a device, and attention over them, against the CPU's.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::{Outcome, behind, compared};
use crate::device::ops::attention::{DeviceKvPages, KvKind, KvLayout};
use crate::device::{DeviceError, DeviceOps, DeviceSlice, Memory};
use crate::kernels::ops::{
    AttentionScratch, AttentionShape, KV_BLOCK, KvPages, KvView, KvViewMut, PAGE, PlaceInPage, Window, scalar,
};
use crate::quant::testing::Random;

/// Keys and values of a sequence, stored on both sides.
pub(in crate::device::ops) struct KvTrial {
    pub layout: KvLayout,
    pub first_page: usize,
    /// Positions up to here are stored.
    pub end: usize,
}

/// Keys or values of a page on the CPU.
enum Page {
    F32(Vec<f32>),
    F16(Vec<u16>),
    Q8_0(Vec<u16>, Vec<i8>),
    Q4_0(Vec<u16>, Vec<u8>),
}

impl Page {
    fn new(kind: KvKind, elements: usize) -> Page {
        let scales = vec![0; elements / KV_BLOCK];
        match kind {
            KvKind::F32 => Page::F32(vec![0.0; elements]),
            KvKind::F16 => Page::F16(vec![0; elements]),
            KvKind::Q8_0 => Page::Q8_0(scales, vec![0; elements]),
            KvKind::Q4_0 => Page::Q4_0(scales, vec![0; elements / 2]),
        }
    }

    fn view(&self) -> KvView<'_> {
        match self {
            Page::F32(page) => KvView::F32(page),
            Page::F16(page) => KvView::F16(page),
            Page::Q8_0(scales, quants) => KvView::Q8_0(scales, quants),
            Page::Q4_0(scales, quants) => KvView::Q4_0(scales, quants),
        }
    }

    fn view_mut(&mut self) -> KvViewMut<'_> {
        match self {
            Page::F32(page) => KvViewMut::F32(page),
            Page::F16(page) => KvViewMut::F16(page),
            Page::Q8_0(scales, quants) => KvViewMut::Q8_0(scales, quants),
            Page::Q4_0(scales, quants) => KvViewMut::Q4_0(scales, quants),
        }
    }

    /// As a device has it.
    fn bytes(&self) -> Vec<u8> {
        match self {
            Page::F32(page) => page.as_bytes().to_vec(),
            Page::F16(page) => page.as_bytes().to_vec(),
            Page::Q8_0(scales, quants) => [scales.as_bytes(), quants.as_bytes()].concat(),
            Page::Q4_0(scales, quants) => [scales.as_bytes(), quants].concat(),
        }
    }
}

/// Pages on both sides.
struct Stored {
    here: [Vec<Page>; 2],
    there: DeviceKvPages,
    arena: Arc<Memory>,
    places: Vec<[usize; 2]>,
}

impl KvTrial {
    fn store(&self, ops: &DeviceOps, random: &mut Random) -> Result<Stored, DeviceError> {
        let KvLayout { kv_heads, key_len, value_len, kinds } = self.layout;
        let pages = self.end.div_ceil(PAGE) - self.first_page;
        let lens = [key_len, value_len];
        let mut here = [0, 1].map(|which| {
            let page = |_| Page::new(kinds[which], kv_heads * PAGE * lens[which]);
            (0..pages).map(page).collect::<Vec<_>>()
        });
        // Pages do not lie in their order, nor values behind keys.
        let [key_bytes, value_bytes] = self.layout.page_bytes();
        let all = ops.allocate((pages + 1) * (key_bytes + value_bytes) / 4)?;
        let arena = all.memory().0.clone();
        let places: Vec<[usize; 2]> = (0..pages)
            .map(|page| {
                let slot = pages - page;
                [(pages + 1) * value_bytes + slot * key_bytes, slot * value_bytes]
            })
            .collect();
        let mut there = ops.allocate_pages(self.layout, arena.clone(), pages + 2)?;
        ops.set_pages(&mut there, self.first_page, &places)?;

        // A pass begins anywhere in a page.
        ops.write(&all, &vec![0u32; all.len()])?;
        let start = self.first_page * PAGE;
        let middle = start + (self.end - start) / 2;
        for [from, to] in [[start, middle], [middle, self.end]] {
            let mut rows = lens.map(|len| {
                let n = (to - from) * kv_heads * len;
                (0..n).map(|_| random.float() * 2.0).collect::<Vec<f32>>()
            });
            rows.iter_mut().filter_map(|rows| rows.first_mut()).for_each(|x| *x = 1e-7);
            let on = [behind(ops, &rows[0])?, behind(ops, &rows[1])?];
            ops.store_kv(&there, from, &on[0], (value_len > 0).then_some(&on[1]))?;
            for which in 0..if value_len > 0 { 2 } else { 1 } {
                let token = kv_heads * lens[which];
                for pos in from..to {
                    let row = &rows[which][(pos - from) * token..][..token];
                    let (len, first) = (lens[which], pos % PAGE);
                    let rotation = self.layout.rotations()[which];
                    let place = PlaceInPage { kv_heads, len, first, rotation, keys: which == 0 };
                    let page = here[which][pos / PAGE - self.first_page].view_mut();
                    scalar().store_kv(row, page, place);
                }
            }
        }
        Ok(Stored { here, there, arena, places })
    }

    /// Whether what was stored is the same on both sides, byte by byte.
    pub fn check_stored(&self, ops: &DeviceOps, random: &mut Random) -> Outcome {
        let stored = self.store(ops, random)?;
        for which in [0, 1] {
            for (i, page) in stored.here[which].iter().enumerate() {
                let (want, at) = (page.bytes(), stored.places[i][which]);
                let mut got = vec![0u32; want.len() / 4];
                ops.read(&DeviceSlice::new(stored.arena.clone(), at / 4, got.len()), &mut got)?;
                if let Some(at) = got.as_bytes().iter().zip(&want).position(|(got, want)| got != want) {
                    let got = got.as_bytes()[at];
                    return Ok(Some(format!(
                        "part {which}, byte {at} of page {i}: {got:x}, scalar {:x}",
                        want[at]
                    )));
                }
            }
        }
        Ok(None)
    }
}

/// A call of attention.
pub(in crate::device::ops) struct AttentionTrial {
    pub shape: AttentionShape,
    pub kinds: [KvKind; 2],
    /// Whether values are the beginnings of keys.
    pub latent: bool,
    pub sinks: bool,
}

impl AttentionTrial {
    /// All at once and chunk by chunk.
    pub fn check(&self, ops: &DeviceOps, random: &mut Random) -> Outcome {
        let AttentionTrial { shape, kinds, latent, sinks } = *self;
        let AttentionShape { heads, kv_heads, key_len, value_len, tokens, first_pos, window, .. } = shape;
        let layout = KvLayout { kv_heads, key_len, value_len: if latent { 0 } else { value_len }, kinds };
        let first_page = window.map_or(0, |window| window.start(first_pos)) / PAGE;
        let stored = KvTrial { layout, first_page, end: first_pos + tokens }.store(ops, random)?;
        let q: Vec<f32> = (0..tokens * heads * key_len).map(|_| random.float() * 3.0).collect();
        let sinks: Option<Vec<f32>> = sinks.then(|| (0..heads).map(|_| random.float() * 2.0).collect());

        let [keys, values] =
            stored.here.each_ref().map(|pages| pages.iter().map(Page::view).collect::<Vec<_>>());
        let kv = KvPages { first_page, keys: &keys, values: (!latent).then_some(&values) };
        let mut want = vec![0.0; tokens * heads * value_len];
        scalar().attention(&shape, &q, &kv, sinks.as_deref(), &mut want, &mut AttentionScratch::default());

        let on = behind(ops, &q)?;
        let sinks = sinks.map(|sinks| behind(ops, &sinks)).transpose()?;
        for by_chunk in [false, true] {
            let out = behind(ops, &vec![7.0f32; want.len()])?;
            ops.attend(&shape, &on, &stored.there, sinks.as_ref(), &out, by_chunk)?;
            if let Some(fault) = compared(ops, &out, &want)? {
                return Ok(Some(format!("{kinds:?}, {shape:?}, by chunk {by_chunk}: {fault}")));
            }
        }
        Ok(None)
    }
}

pub(super) fn store_kv(ops: &DeviceOps, random: &mut Random, _: usize) -> Outcome {
    let (floats, quants) = ([KvKind::F32, KvKind::F16], [KvKind::Q8_0, KvKind::Q4_0]);
    for (kinds, key_len, value_len) in [(floats, 33, 24), ([KvKind::F16; 2], 32, 0), (quants, 64, 96)] {
        let layout = KvLayout { kv_heads: 2, key_len, value_len, kinds };
        let trial = KvTrial { layout, first_page: 1, end: 300 };
        if let Some(fault) = trial.check_stored(ops, random)? {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}

/// Several chunks, groups of heads, windows, a cap and sinks; values beside keys and in them.
pub(super) fn attention(ops: &DeviceOps, random: &mut Random, _: usize) -> Outcome {
    let plain = AttentionShape {
        heads: 6,
        kv_heads: 2,
        key_len: 40,
        value_len: 24,
        tokens: 5,
        first_pos: 380,
        window: None,
        scale: 0.3,
        soft_cap: None,
    };
    let (f32s, f16s) = ([KvKind::F32; 2], [KvKind::F16; 2]);
    let sliding = AttentionShape { window: Some(Window::Sliding(130)), ..plain };
    let capped = AttentionShape { soft_cap: Some(2.0), window: Some(Window::Chunked(200)), ..plain };
    let long = AttentionShape { heads: 5, kv_heads: 1, key_len: 192, value_len: 160, tokens: 1, ..plain };
    let blocks = AttentionShape { key_len: 64, value_len: 96, ..sliding };
    let trials = [
        (plain, f32s, false),
        (sliding, f16s, false),
        (capped, f16s, true),
        (long, f16s, false),
        (blocks, [KvKind::Q8_0, KvKind::Q4_0], false),
        (blocks, [KvKind::Q4_0, KvKind::Q8_0], false),
        (AttentionShape { value_len: 32, ..blocks }, [KvKind::Q4_0; 2], true),
    ];
    for (shape, kinds, latent) in trials {
        let trial = AttentionTrial { shape, kinds, latent, sinks: latent || kinds == f32s };
        if let Some(fault) = trial.check(ops, random)? {
            return Ok(Some(fault));
        }
    }
    Ok(None)
}
