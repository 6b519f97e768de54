//! Pages of keys and values on a device, and attention over them.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::{DeviceOps, DeviceSlice, count, number};
use crate::device::{Arg, DeviceError, Memory, Queue};
use crate::kernels::ops::{AttentionShape, PAGE, Window};

/// As in the source's `ops_attention.cl`: lanes, rows of a group, what a part has beside its values, and bytes in
/// whose multiples pages begin.
const ATTEND_LANES: usize = PAGE;
const ATTEND_ROWS: usize = ATTEND_LANES / 32;
const COMBINE_LANES: usize = 64;
const STATE: usize = 3;
const UNIT_BYTES: usize = 256;

/// Elements of a key at most: queries lie in local memory.
pub(in crate::device) const MOST_KEY_LEN: usize = 576;

/// Groups that keep a device busy: fewer are split by chunk.
const ENOUGH_GROUPS: usize = 1024;
/// Floats that parts may take.
const MOST_PARTS: usize = 1 << 24;

/// How keys or values are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvKind {
    F32,
    /// Rounded to nearest even.
    F16,
}

impl KvKind {
    fn bytes(self) -> usize {
        match self {
            KvKind::F32 => 4,
            KvKind::F16 => 2,
        }
    }

    fn arg(self) -> Arg<'static> {
        Arg::U32(match self {
            KvKind::F32 => 0,
            KvKind::F16 => 1,
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
    /// Bytes of a page's keys and of its values: `[kv_heads][PAGE][len]`.
    pub fn page_bytes(&self) -> [usize; 2] {
        let bytes = |kind: KvKind, len: usize| self.kv_heads * PAGE * len * kind.bytes();
        [bytes(self.kinds[0], self.key_len), bytes(self.kinds[1], self.value_len)]
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
        assert!(layout.kv_heads > 0 && layout.key_len > 0, "pages of nothing");
        Ok(DeviceKvPages { layout, arena, first_page: 0, pages: 0, table: self.allocate(2 * capacity)? })
    }

    /// Says which pages are there: for each, the bytes of the arena before its keys and before its values, for
    /// what is launched afterwards.
    ///
    /// # Errors
    /// A device that is lost.
    ///
    /// # Panics
    /// Where a page does not lie in the arena or not at multiples of [`KvLayout::ALIGNMENT`], or the table has
    /// no room.
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

    /// Writes keys and, where these are kept beside them, values into pages, at the positions from `first_pos`
    /// on: `[tokens][kv_heads * len]` each, as [`Ops::store_kv`](crate::kernels::ops::Ops::store_kv).
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
        let KvLayout { kv_heads, key_len, value_len, kinds } = pages.layout;
        assert_eq!(values.is_some(), value_len > 0, "store_kv: values");
        let tokens = keys.len / (kv_heads * key_len);
        assert!(
            pages.holds(first_pos / PAGE..(first_pos + tokens).div_ceil(PAGE)) || tokens == 0,
            "store_kv: pages"
        );
        let both = [(Some(keys), key_len, kinds[0]), (values, value_len, kinds[1])];
        for (which, (rows, len, kind)) in both.into_iter().enumerate() {
            let Some(rows) = rows else { continue };
            assert_eq!(rows.len, tokens * kv_heads * len, "store_kv: rows");
            let ([memory, at], [arena, table, table_at, first_page]) = (rows.args(), pages.args());
            let args = [
                memory,
                at,
                count(kv_heads * len),
                arena,
                table,
                table_at,
                first_page,
                count(first_pos),
                count(rows.len),
                count(kv_heads),
                count(len),
                kind.arg(),
                count(which),
            ];
            self.run_each("op_store_kv", rows.len, &args)?;
        }
        Ok(())
    }

    /// Whether attention of this shape can be computed here.
    pub fn takes_attention(&self, shape: &AttentionShape) -> bool {
        self.has("attention") && shape.key_len <= MOST_KEY_LEN
    }

    /// [`Ops::attention`](crate::kernels::ops::Ops::attention): `q`: `[tokens][heads][key_len]`; `sinks`:
    /// `[heads]`; `out`: `[tokens][heads][value_len]`.
    ///
    /// # Errors
    /// A device that is lost, or has no memory for the parts.
    ///
    /// # Panics
    /// Where lengths do not go together, keys are longer than [`DeviceOps::takes_attention`] allows, or a page
    /// is not there.
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
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.as_ref().is_none_or(|parts| parts.bytes() < most * size_of::<f32>()) {
            *parts = None;
            *parts = Some(Memory::allocate(&self.driver, most * size_of::<f32>())?);
        }
        let Some(parts) = &*parts else { return Ok(()) };
        for start in (0..shape.tokens).step_by(at_once) {
            let tokens = tokens(start);
            let q = q.part(start * shape.heads * shape.key_len, tokens.len() * shape.heads * shape.key_len);
            let row = shape.heads * shape.value_len;
            let out = out.part(start * row, tokens.len() * row);
            let seeing = Seeing::new(shape, tokens, by_chunk);
            self.attend_some(shape, &seeing, &q, pages, parts)?;
            self.combine(shape, &seeing, parts, sinks, &out)?;
        }
        Ok(())
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

fn check(
    shape: &AttentionShape,
    q: &DeviceSlice,
    pages: &DeviceKvPages,
    sinks: Option<&DeviceSlice>,
    out: &DeviceSlice,
) {
    let &AttentionShape { heads, kv_heads, key_len, value_len, tokens, first_pos, window, .. } = shape;
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
