//! Pages of keys and values on a device, and attention over them.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::{DeviceOps, DeviceSlice, count, number};
use crate::device::{Arg, DeviceError, Memory, Queue};
use crate::kernels::ops::{AttentionShape, KV_BLOCK, PAGE, Window, key_rotation, value_rotation};

/// As in the source's `ops_attention.cl`: lanes, rows of a group, what a part has beside its values, and
/// bytes in whose multiples pages begin.
const ATTEND_LANES: usize = PAGE;
const ATTEND_ROWS: usize = ATTEND_LANES / 32;
const COMBINE_LANES: usize = 64;
const HEAD_LANES: usize = 64;
/// Words of a block of a rounded query.
const QUERY_WORDS: usize = 9;
const STATE: usize = 3;
const UNIT_BYTES: usize = 256;

/// Elements of a key at most: queries lie in local memory.
pub(in crate::device) const MOST_KEY_LEN: usize = 576;

/// Groups that keep a device busy: fewer are split by chunk.
const ENOUGH_GROUPS: usize = 1024;
/// Floats that parts may take; far fewer in tests, so that tokens are taken in several launches.
const MOST_PARTS: usize = if cfg!(test) { 1 << 13 } else { 1 << 24 };

/// How keys or values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    F32,
    /// Rounded to nearest even.
    F16,
    /// Blocks of 32 bytes with an f16 scale each.
    Q8_0,
    /// Blocks of 32 nibbles with an f16 scale each.
    Q4_0,
}

impl KvKind {
    /// Bytes of so many elements.
    fn bytes(self, elements: usize) -> usize {
        let blocks = elements / KV_BLOCK;
        match self {
            KvKind::F32 => elements * size_of::<f32>(),
            KvKind::F16 => elements * size_of::<u16>(),
            KvKind::Q8_0 => blocks * (size_of::<u16>() + KV_BLOCK),
            KvKind::Q4_0 => blocks * (size_of::<u16>() + KV_BLOCK / 2),
        }
    }

    fn is_quantised(self) -> bool {
        matches!(self, KvKind::Q8_0 | KvKind::Q4_0)
    }

    fn arg(self) -> Arg<'static> {
        Arg::U32(match self {
            KvKind::F32 => 0,
            KvKind::F16 => 1,
            KvKind::Q8_0 => 2,
            KvKind::Q4_0 => 3,
        })
    }
}

/// What the pages of a layer are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    pub kv_heads: usize,
    pub key_len: usize,
    /// 0: a position's value is the beginning of its key.
    pub value_len: usize,
    /// Of keys and of values.
    pub kinds: [KvKind; 2],
}

impl KvLayout {
    /// Bytes of a page's keys and of its values: `[kv_heads][PAGE][len]`, of quants the scales and then the
    /// quants, as in [`KvView`](crate::kernels::ops::KvView).
    pub fn page_bytes(&self) -> [usize; 2] {
        let bytes = |kind: KvKind, len: usize| kind.bytes(self.kv_heads * PAGE * len);
        [bytes(self.kinds[0], self.key_len), bytes(self.kinds[1], self.value_len)]
    }

    /// The orders of the Hadamard matrices that keys and values are multiplied by before they are kept; 1:
    /// none. What attention gives of rotated values is to be rotated back: [`DeviceOps::hadamard`].
    pub fn rotations(&self) -> [usize; 2] {
        let order = |kind: KvKind, rotation: usize| match kind.is_quantised() && self.value_len > 0 {
            true => rotation,
            false => 1,
        };
        let [keys, values] = self.kinds;
        [order(keys, key_rotation(self.key_len)), order(values, value_rotation(self.value_len))]
    }

    fn check(&self) {
        let KvLayout { kv_heads, key_len, value_len, kinds } = *self;
        assert!(kv_heads > 0 && key_len > 0, "pages of nothing");
        for (kind, len) in kinds.into_iter().zip([key_len, value_len]) {
            let blocks = len.is_multiple_of(KV_BLOCK) && len <= MOST_KEY_LEN;
            assert!(!kind.is_quantised() || blocks, "rows of {len} in blocks");
        }
    }

    /// What the place of a page's keys or values in an arena is a multiple of; their bytes are too.
    pub const ALIGNMENT: usize = UNIT_BYTES;
}

/// Consecutive pages of one layer and sequence: page i holds the positions from `(first_page + i) * PAGE` on.
#[derive(Debug)]
pub struct DeviceKvPages {
    layout: KvLayout,
    arena: Arc<Memory>,
    first_page: usize,
    pages: usize,
    /// Places of keys and of values, in units: `[capacity][2]`.
    table: DeviceSlice,
}

impl DeviceKvPages {
    /// Pages that lie in `arena`; `table` has room for two numbers of each. What is launched with former
    /// pages of the same table comes before.
    ///
    /// # Panics
    /// A layout that kernels do not take.
    pub fn new(layout: KvLayout, arena: Arc<Memory>, table: DeviceSlice) -> DeviceKvPages {
        layout.check();
        DeviceKvPages { layout, arena, first_page: 0, pages: 0, table }
    }

    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Whether all of these pages are there.
    fn holds(&self, pages: Range<usize>) -> bool {
        self.first_page <= pages.start && pages.end <= self.first_page + self.pages
    }

    /// Where its pages are, as kernels take it.
    fn args(&self) -> [Arg<'_>; 4] {
        let table = Arg::U32(number(self.table.at));
        [Arg::Memory(&self.arena), Arg::Memory(&self.table.memory), table, count(self.first_page)]
    }
}

/// What tokens of a call see, and how their chunks are shared.
#[derive(Clone, Copy)]
struct Seeing {
    first_pos: usize,
    tokens: usize,
    heads: usize,
    window: Option<Window>,
    /// The chunks that the tokens see something of.
    first_chunk: usize,
    chunks: usize,
    by_chunk: bool,
}

impl Seeing {
    fn new(shape: &AttentionShape, tokens: Range<usize>, by_chunk: bool) -> Seeing {
        let first_pos = shape.first_pos + tokens.start;
        let first_chunk = shape.window.map_or(0, |window| window.start(first_pos)) / PAGE;
        let chunks = (first_pos + tokens.len()).div_ceil(PAGE) - first_chunk;
        let by_chunk = by_chunk && chunks > 1;
        let (heads, window) = (shape.heads, shape.window);
        Seeing { first_pos, tokens: tokens.len(), heads, window, first_chunk, chunks, by_chunk }
    }

    fn splits(&self) -> usize {
        if self.by_chunk { self.chunks } else { 1 }
    }

    fn rows(&self) -> usize {
        self.tokens * self.heads
    }

    fn args(&self) -> [Arg<'static>; 7] {
        let (sliding, window) = match self.window {
            None => (0, 0),
            Some(Window::Sliding(window)) => (1, window),
            Some(Window::Chunked(window)) => (0, window),
        };
        // One that is longer than any sequence is none; that of stretches has its first alone.
        let window = window.min(u32::MAX as usize);
        [self.first_pos, self.tokens, self.heads, sliding, window, self.first_chunk, self.splits()].map(count)
    }
}

impl DeviceOps {
    /// Room for the table of up to `capacity` pages that lie in `arena`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or that the device is lost.
    pub fn allocate_pages(
        &self,
        layout: KvLayout,
        arena: Arc<Memory>,
        capacity: usize,
    ) -> Result<DeviceKvPages, DeviceError> {
        Ok(DeviceKvPages::new(layout, arena, self.allocate(2 * capacity)?))
    }

    /// Says which pages are there: for each, the bytes of the arena before its keys and before its values,
    /// for what is launched afterwards.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where a page does not lie in the arena or not at multiples of [`KvLayout::ALIGNMENT`], or the table
    /// has no room.
    pub fn set_pages(
        &self,
        pages: &mut DeviceKvPages,
        first_page: usize,
        places: &[[usize; 2]],
    ) -> Result<(), DeviceError> {
        let (bytes, all) = (pages.layout.page_bytes(), pages.arena.bytes());
        assert!(
            2 * places.len() <= pages.table.len,
            "{} pages in a table of {}",
            places.len(),
            pages.table.len
        );
        let mut units = Vec::with_capacity(2 * places.len());
        for place in places {
            for (&at, bytes) in place.iter().zip(bytes) {
                let within = at.checked_add(bytes).is_some_and(|end| end <= all);
                assert!(at.is_multiple_of(UNIT_BYTES) && within, "a page at {at} of {all}");
                units.push(number(at / UNIT_BYTES));
            }
        }
        let at = pages.table.at * size_of::<u32>();
        let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        self.driver.write(Queue::Compute, pages.table.memory.handle(), at, &bytes)?;
        (pages.first_page, pages.pages) = (first_page, places.len());
        Ok(())
    }

    /// Writes keys and, where these are kept beside them, values into pages, at the positions from
    /// `first_pos` on: `[tokens][kv_heads * len]` each, as
    /// [`Ops::store_kv`](crate::kernels::ops::Ops::store_kv).
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where lengths do not go together or a page is not there.
    pub fn store_kv(
        &self,
        pages: &DeviceKvPages,
        first_pos: usize,
        keys: &DeviceSlice,
        values: Option<&DeviceSlice>,
    ) -> Result<(), DeviceError> {
        let KvLayout { kv_heads, key_len, value_len, .. } = pages.layout;
        assert_eq!(values.is_some(), value_len > 0, "store_kv: values");
        assert!(keys.len.is_multiple_of(kv_heads * key_len), "store_kv: keys");
        let tokens = keys.len / (kv_heads * key_len);
        assert!(
            pages.holds(first_pos / PAGE..(first_pos + tokens).div_ceil(PAGE)) || tokens == 0,
            "store_kv: pages"
        );
        self.store(pages, 0, first_pos, keys)?;
        values.map_or(Ok(()), |values| {
            assert_eq!(values.len, tokens * kv_heads * value_len, "store_kv: values");
            self.store(pages, 1, first_pos, values)
        })
    }

    /// Writes keys (0) or values (1).
    fn store(
        &self,
        pages: &DeviceKvPages,
        which: usize,
        first_pos: usize,
        rows: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let KvLayout { kv_heads, key_len, value_len, kinds } = pages.layout;
        let (len, kind, rotation) =
            ([key_len, value_len][which], kinds[which], pages.layout.rotations()[which]);
        let mut args = Vec::from(rows.args());
        args.push(count(kv_heads * len));
        args.extend(pages.args());
        args.push(count(first_pos));
        if kind.is_quantised() {
            args.extend([count(kv_heads), count(len), kind.arg(), count(which)]);
            args.extend([count(rotation), Arg::F32(hadamard_scale(rotation))]);
            return self.run("op_store_quantised", [rows.len / len, 1], HEAD_LANES, &args);
        }
        args.extend([count(rows.len), count(kv_heads), count(len), kind.arg(), count(which)]);
        self.run_each("op_store_kv", rows.len, &args)
    }

    /// [`Ops::hadamard`](crate::kernels::ops::Ops::hadamard): each row of `x`, `[rows][n]`, n a power of two
    /// up to 512.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where `x` is no whole number of rows, or n is none of these.
    pub fn hadamard(&self, x: &DeviceSlice, n: usize) -> Result<(), DeviceError> {
        let fits = n.is_power_of_two() && n <= MOST_KEY_LEN && x.len.is_multiple_of(n);
        assert!(fits, "hadamard: {} values in rows of {n}", x.len);
        let [memory, at] = x.args();
        let args = [memory, at, count(n), Arg::F32(hadamard_scale(n))];
        self.run("op_hadamard", [x.len / n, 1], HEAD_LANES, &args)
    }

    /// Whether attention of this shape can be computed here.
    pub fn takes_attention(&self, shape: &AttentionShape) -> bool {
        self.has("attention") && shape.key_len.max(shape.value_len) <= MOST_KEY_LEN
    }

    /// Bytes that attention takes beside its operands, in passes of up to so many tokens that see up to
    /// `context` positions.
    pub fn attention_bytes(shape: &AttentionShape, tokens: usize, context: usize) -> u64 {
        let (part, chunks) = (shape.value_len + STATE, context.div_ceil(PAGE));
        let rows = tokens.saturating_mul(shape.heads);
        // As long as groups are few they are split by chunk.
        let split = rows.min(ENOUGH_GROUPS * ATTEND_ROWS).saturating_mul(chunks);
        let of_token = (shape.heads * part).saturating_mul(chunks);
        let parts = rows.max(split).saturating_mul(part).min(of_token.max(MOST_PARTS));
        let queries = rows.saturating_mul(shape.key_len / KV_BLOCK * QUERY_WORDS);
        (parts as u64).saturating_add(queries as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// [`Ops::attention`](crate::kernels::ops::Ops::attention): `q`: `[tokens][heads][key_len]`; `sinks`:
    /// `[heads]`; `out`: `[tokens][heads][value_len]`.
    ///
    /// # Errors
    /// A device that is lost, or has no memory for the parts.
    ///
    /// # Panics
    /// Where lengths do not go together, keys are longer than [`DeviceOps::takes_attention`] allows, or a
    /// page is not there.
    pub fn attention(
        &self,
        shape: &AttentionShape,
        q: &DeviceSlice,
        pages: &DeviceKvPages,
        sinks: Option<&DeviceSlice>,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let tiles = (shape.tokens * shape.heads).div_ceil(ATTEND_ROWS);
        self.attend(shape, q, pages, sinks, out, tiles < ENOUGH_GROUPS)
    }

    /// The same; whether groups take a chunk each changes no result.
    pub(super) fn attend(
        &self,
        shape: &AttentionShape,
        q: &DeviceSlice,
        pages: &DeviceKvPages,
        sinks: Option<&DeviceSlice>,
        out: &DeviceSlice,
        by_chunk: bool,
    ) -> Result<(), DeviceError> {
        check(shape, q, pages, sinks, out);
        if shape.tokens == 0 {
            return Ok(());
        }
        let part_len = shape.value_len + STATE;
        let parts_of = |tokens| {
            let seeing = Seeing::new(shape, tokens, by_chunk);
            seeing.rows() * seeing.splits() * part_len
        };
        // As many tokens at once as there may be parts.
        let mut at_once = shape.tokens;
        while at_once > 1 && parts_of(shape.tokens - at_once..shape.tokens) > MOST_PARTS {
            at_once = at_once.div_ceil(2);
        }
        let most = (0..shape.tokens).step_by(at_once);
        let tokens = |start: usize| start..(start + at_once).min(shape.tokens);
        let most = most.map(|start| parts_of(tokens(start))).max().unwrap_or(0);
        // Rounded queries lie behind the parts.
        let query = shape.key_len / KV_BLOCK * QUERY_WORDS;
        let queries = if pages.layout.kinds[0].is_quantised() { at_once * shape.heads * query } else { 0 };
        let bytes = (most + queries) * size_of::<f32>();
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if scratch.as_ref().is_none_or(|scratch| scratch.bytes() < bytes) {
            *scratch = None;
            *scratch = Some(Arc::new(Memory::allocate(&self.driver, bytes)?));
        }
        let Some(scratch) = &*scratch else { return Ok(()) };
        let queries = DeviceSlice::new(scratch.clone(), most, queries);
        for start in (0..shape.tokens).step_by(at_once) {
            let tokens = tokens(start);
            let row = shape.heads * shape.key_len;
            let mut q = q.part(start * row, tokens.len() * row);
            if !queries.is_empty() {
                self.round_queries(&q, &pages.layout, &queries)?;
                q = queries.clone();
            }
            let row = shape.heads * shape.value_len;
            let out = out.part(start * row, tokens.len() * row);
            let seeing = Seeing::new(shape, tokens, by_chunk);
            self.attend_some(shape, &seeing, &q, pages, scratch)?;
            self.combine(shape, &seeing, scratch, sinks, &out)?;
        }
        Ok(())
    }

    /// Rotates queries as the keys were and rounds them to Q8_0.
    fn round_queries(&self, q: &DeviceSlice, layout: &KvLayout, to: &DeviceSlice) -> Result<(), DeviceError> {
        let (len, [rotation, _]) = (layout.key_len, layout.rotations());
        let to = to.part(0, q.len / KV_BLOCK * QUERY_WORDS);
        let ([memory, at], [to, to_at]) = (q.args(), to.args());
        let args = [memory, at, to, to_at, count(len), count(rotation), Arg::F32(hadamard_scale(rotation))];
        self.run("op_round_queries", [q.len / len, 1], HEAD_LANES, &args)
    }

    /// Parts of some tokens.
    fn attend_some(
        &self,
        shape: &AttentionShape,
        seeing: &Seeing,
        q: &DeviceSlice,
        pages: &DeviceKvPages,
        parts: &Memory,
    ) -> Result<(), DeviceError> {
        let &AttentionShape { kv_heads, key_len, value_len, .. } = shape;
        let tiles = (seeing.rows() / kv_heads).div_ceil(ATTEND_ROWS);
        let latent = pages.layout.value_len == 0;
        let value_row = if latent { key_len } else { value_len };
        let [key_kind, value_kind] = match pages.layout.kinds {
            [keys, _] if latent => [keys, keys],
            kinds => kinds,
        };
        let (by, cap) = shape.soft_cap.map_or((0.0, 0.0), |cap| (shape.scale / cap, cap));
        // A soft cap scales by itself.
        let scale = if shape.soft_cap.is_some() { 1.0 } else { shape.scale };
        let mut args = Vec::from(q.args());
        args.extend(pages.args());
        args.push(Arg::Memory(parts));
        args.extend(seeing.args());
        args.extend([kv_heads, key_len, value_len, value_row].map(count));
        args.extend([key_kind.arg(), value_kind.arg(), count(usize::from(!latent))]);
        args.extend([scale, by, cap].map(Arg::F32));
        self.run("op_attend", [kv_heads * tiles, seeing.splits()], ATTEND_LANES, &args)
    }

    /// Merges the parts of each row.
    fn combine(
        &self,
        shape: &AttentionShape,
        seeing: &Seeing,
        parts: &Memory,
        sinks: Option<&DeviceSlice>,
        out: &DeviceSlice,
    ) -> Result<(), DeviceError> {
        let mut args = vec![Arg::Memory(parts)];
        args.extend(seeing.args());
        args.push(count(shape.value_len));
        // Something in the sinks' place, where there are none.
        args.extend(sinks.unwrap_or(out).args());
        args.push(count(usize::from(sinks.is_some())));
        args.extend(out.args());
        self.run("op_combine", [seeing.rows(), 1], COMBINE_LANES, &args)
    }
}

/// What a Hadamard matrix of this order is multiplied by, to be orthonormal.
fn hadamard_scale(n: usize) -> f32 {
    (1.0 / f64::from((n as f32).sqrt())) as f32
}

fn check(
    shape: &AttentionShape,
    q: &DeviceSlice,
    pages: &DeviceKvPages,
    sinks: Option<&DeviceSlice>,
    out: &DeviceSlice,
) {
    let &AttentionShape { heads, kv_heads, key_len, value_len, tokens, window, .. } = shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "attention: heads");
    assert!(0 < key_len && key_len <= MOST_KEY_LEN && value_len > 0, "attention: lengths of a head");
    assert!(window.is_none_or(|window| window.len() > 0), "attention: a window of nothing");
    assert_eq!(q.len, tokens * heads * key_len, "attention: q");
    assert_eq!(out.len, tokens * heads * value_len, "attention: out");
    assert!(sinks.is_none_or(|sinks| sinks.len == heads), "attention: sinks");
    let layout = &pages.layout;
    let values = if layout.value_len == 0 { value_len <= key_len } else { value_len == layout.value_len };
    assert!(layout.kv_heads == kv_heads && layout.key_len == key_len && values, "attention: pages");
    if tokens > 0 {
        let seen = Seeing::new(shape, 0..tokens, false);
        let needed = seen.first_chunk..seen.first_chunk + seen.chunks;
        assert!(pages.holds(needed), "attention: pages that are not there");
    }
}
