//! Keys and values of a slot, in pages of 128 positions.
//!
//! A page is the chunk of attention's arithmetic. A full page never changes; pages may be shared by sequences
//! that begin alike, and one that is written to while it is shared is copied first. A layer with a window
//! gives up the pages that it no longer sees, so that its memory does not grow with the context.

mod kept;

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::kernels::ops::{
    KV_BLOCK, KvPages, KvView, KvViewMut, Ops, PAGE, PlaceInPage, Window, key_rotation, value_rotation,
};
use crate::store::{OutOfMemory, zeroed};

use super::numbers::{read_numbers, write_numbers};

/// Element type of keys or of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvElement {
    /// Half the memory of F32; rounded to nearest even.
    #[default]
    F16,
    F32,
    /// Eight bits, and a scale for each 32.
    Q8_0,
    /// Four bits, and a scale for each 32.
    Q4_0,
}

impl KvElement {
    /// Every type, by name.
    pub const ALL: &[(&str, KvElement)] = &[
        ("f16", KvElement::F16),
        ("f32", KvElement::F32),
        ("q8_0", KvElement::Q8_0),
        ("q4_0", KvElement::Q4_0),
    ];

    /// All names, for messages.
    pub fn names() -> String {
        KvElement::ALL.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Whether these are blocks of quants.
    pub fn is_quantised(self) -> bool {
        matches!(self, KvElement::Q8_0 | KvElement::Q4_0)
    }

    /// The type of what is kept as floats all the same.
    fn float(self) -> KvElement {
        if self.is_quantised() { KvElement::F16 } else { self }
    }

    /// Bytes of so many elements.
    fn bytes(self, elements: usize) -> usize {
        let blocks = elements / KV_BLOCK;
        match self {
            KvElement::F16 => elements * size_of::<u16>(),
            KvElement::F32 => elements * size_of::<f32>(),
            KvElement::Q8_0 => blocks * (size_of::<u16>() + KV_BLOCK),
            KvElement::Q4_0 => blocks * (size_of::<u16>() + KV_BLOCK / 2),
        }
    }

    /// The least magnitude that cannot be kept. What is quantised is rotated before, which may gather a row's
    /// magnitude in one element; its scale is an f16.
    pub fn overflow(self) -> f32 {
        const F16: f32 = 65520.0;
        match self {
            KvElement::F32 => f32::INFINITY,
            KvElement::F16 | KvElement::Q8_0 => F16,
            KvElement::Q4_0 => F16 / 4.0,
        }
    }
}

impl fmt::Display for KvElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = KvElement::ALL.iter().find(|(_, element)| element == self);
        f.pad(named.map_or("", |(name, _)| name))
    }
}

/// A name that is no type's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("'{0}' is none of {names}", names = KvElement::names())]
pub struct UnknownKv(String);

impl FromStr for KvElement {
    type Err = UnknownKv;

    fn from_str(name: &str) -> Result<KvElement, UnknownKv> {
        let named = KvElement::ALL.iter().find(|(known, _)| *known == name);
        named.map(|&(_, element)| element).ok_or_else(|| UnknownKv(name.to_owned()))
    }
}

/// Types of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KvType {
    pub keys: KvElement,
    pub values: KvElement,
}

impl KvType {
    pub const F16: KvType = KvType::both(KvElement::F16);
    pub const F32: KvType = KvType::both(KvElement::F32);
    pub const Q8_0: KvType = KvType::both(KvElement::Q8_0);
    pub const Q4_0: KvType = KvType::both(KvElement::Q4_0);

    const fn both(element: KvElement) -> KvType {
        KvType { keys: element, values: element }
    }

    /// The types of what is kept as floats all the same.
    pub fn floats(self) -> KvType {
        KvType { keys: self.keys.float(), values: self.values.float() }
    }

    /// Whether keys or values are quantised.
    pub fn is_quantised(self) -> bool {
        self.keys.is_quantised() || self.values.is_quantised()
    }
}

/// One name where both are the same, otherwise those of keys and of values: `q8_0/q4_0`.
impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys == self.values {
            true => self.keys.fmt(f),
            false => f.pad(&format!("{}/{}", self.keys, self.values)),
        }
    }
}

impl FromStr for KvType {
    type Err = UnknownKv;

    fn from_str(names: &str) -> Result<KvType, UnknownKv> {
        let (keys, values) = names.split_once('/').unwrap_or((names, names));
        Ok(KvType { keys: keys.parse()?, values: values.parse()? })
    }
}

/// Why a model's keys and values cannot be kept in some types.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KvError {
    #[error("a KV cache of {element} takes heads of a multiple of {KV_BLOCK} elements: {what} have {len}")]
    Blocks { element: KvElement, what: &'static str, len: usize },
    #[error(
        "this model keeps latents, of which the values are a part: keys and values are of one type, not {0}"
    )]
    Apart(KvType),
}

/// Keys or values of a page: `[kv_heads][PAGE][len]`.
#[derive(Clone, Debug)]
enum PageBuffer {
    F16(Vec<u16>),
    F32(Vec<f32>),
    /// Scales and quants.
    Q8_0(Vec<u16>, Vec<i8>),
    Q4_0(Vec<u16>, Vec<u8>),
}

impl PageBuffer {
    fn new(element: KvElement, kv_heads: usize, len: usize) -> Result<PageBuffer, OutOfMemory> {
        const WHAT: &str = "the KV cache";
        let sizes = [kv_heads, PAGE, len];
        let scales = || zeroed(&[kv_heads, PAGE, len / KV_BLOCK], WHAT);
        Ok(match element {
            KvElement::F16 => PageBuffer::F16(zeroed(&sizes, WHAT)?),
            KvElement::F32 => PageBuffer::F32(zeroed(&sizes, WHAT)?),
            KvElement::Q8_0 => PageBuffer::Q8_0(scales()?, zeroed(&sizes, WHAT)?),
            KvElement::Q4_0 => PageBuffer::Q4_0(scales()?, zeroed(&[kv_heads, PAGE, len / 2], WHAT)?),
        })
    }

    fn view(&self) -> KvView<'_> {
        match self {
            PageBuffer::F16(v) => KvView::F16(v),
            PageBuffer::F32(v) => KvView::F32(v),
            PageBuffer::Q8_0(scales, v) => KvView::Q8_0(scales, v),
            PageBuffer::Q4_0(scales, v) => KvView::Q4_0(scales, v),
        }
    }

    fn view_mut(&mut self) -> KvViewMut<'_> {
        match self {
            PageBuffer::F16(v) => KvViewMut::F16(v),
            PageBuffer::F32(v) => KvViewMut::F32(v),
            PageBuffer::Q8_0(scales, v) => KvViewMut::Q8_0(scales, v),
            PageBuffer::Q4_0(scales, v) => KvViewMut::Q4_0(scales, v),
        }
    }

    /// Takes over another's values; both are of the same size and type.
    fn copy_from(&mut self, other: &PageBuffer) {
        match (self, other) {
            (PageBuffer::F16(to), PageBuffer::F16(from)) => to.copy_from_slice(from),
            (PageBuffer::F32(to), PageBuffer::F32(from)) => to.copy_from_slice(from),
            (PageBuffer::Q8_0(scales, to), PageBuffer::Q8_0(from_scales, from)) => {
                scales.copy_from_slice(from_scales);
                to.copy_from_slice(from);
            }
            (PageBuffer::Q4_0(scales, to), PageBuffer::Q4_0(from_scales, from)) => {
                scales.copy_from_slice(from_scales);
                to.copy_from_slice(from);
            }
            _ => unreachable!("pages of one layer are of one type"),
        }
    }

    /// Writes some of its elements as they are kept, little-endian; of quants the scales and then the quants,
    /// of whole heads.
    fn write_to(&self, elements: Range<usize>, out: &mut impl Write) -> io::Result<()> {
        match self {
            PageBuffer::F16(v) => write_numbers(&v[elements], u16::to_le_bytes, out),
            PageBuffer::F32(v) => write_numbers(&v[elements], f32::to_le_bytes, out),
            PageBuffer::Q8_0(scales, v) => {
                write_numbers(&scales[scales_of(&elements)], u16::to_le_bytes, out)?;
                write_numbers(&v[elements], i8::to_le_bytes, out)
            }
            PageBuffer::Q4_0(scales, v) => {
                write_numbers(&scales[scales_of(&elements)], u16::to_le_bytes, out)?;
                out.write_all(&v[elements.start / 2..elements.end / 2])
            }
        }
    }

    /// Reads what [`PageBuffer::write_to`] wrote.
    fn read_from(&mut self, elements: Range<usize>, from: &mut impl Read) -> io::Result<()> {
        match self {
            PageBuffer::F16(v) => read_numbers(&mut v[elements], u16::from_le_bytes, from),
            PageBuffer::F32(v) => read_numbers(&mut v[elements], f32::from_le_bytes, from),
            PageBuffer::Q8_0(scales, v) => {
                read_numbers(&mut scales[scales_of(&elements)], u16::from_le_bytes, from)?;
                read_numbers(&mut v[elements], i8::from_le_bytes, from)
            }
            PageBuffer::Q4_0(scales, v) => {
                read_numbers(&mut scales[scales_of(&elements)], u16::from_le_bytes, from)?;
                from.read_exact(&mut v[elements.start / 2..elements.end / 2])
            }
        }
    }
}

/// The scales of some elements, of whole heads.
fn scales_of(elements: &Range<usize>) -> Range<usize> {
    elements.start / KV_BLOCK..elements.end / KV_BLOCK
}

/// Keys and values of [`PAGE`] positions of a layer.
#[derive(Debug)]
struct Page {
    /// A number that no other page has or had: as long as a page has it, rows that are filled do not change.
    id: u64,
    /// Rows from here on are still to be filled.
    filled: usize,
    keys: PageBuffer,
    values: PageBuffer,
}

impl Page {
    fn next_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Rows from `first` on are to be filled: where some were before, the page is another.
    fn fill_from(&mut self, first: usize) {
        if first < self.filled {
            self.id = Page::next_id();
        }
        self.filled = first;
    }
}

/// The keys and values that a slot still has of a sequence, or keys alone, where values have no elements. A
/// clone shares the pages until one of both writes to them.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    ty: KvType,
    kv_heads: usize,
    key_len: usize,
    value_len: usize,
    window: Option<Window>,
    /// The number of the first page kept.
    first_page: usize,
    pages: VecDeque<Arc<Page>>,
}

impl Pages {
    pub fn new(ty: KvType, [kv_heads, key_len, value_len]: [usize; 3], window: Option<Window>) -> Pages {
        Pages { ty, kv_heads, key_len, value_len, window, first_page: 0, pages: VecDeque::new() }
    }

    pub fn ty(&self) -> KvType {
        self.ty
    }

    /// Bytes of a page.
    fn page_bytes(&self) -> u64 {
        let of = |element: KvElement, len: usize| element.bytes(PAGE * self.kv_heads * len);
        (of(self.ty.keys, self.key_len) + of(self.ty.values, self.value_len)) as u64
    }

    /// Bytes of so many positions at most, filled in passes of up to `batch` tokens.
    pub fn most_bytes(&self, context: usize, batch: usize) -> u64 {
        let all = context.div_ceil(PAGE);
        // A page before and behind what is seen, and one that is kept to take tokens back.
        let pages = match self.window {
            Some(window) => all.min((window.len() + batch).div_ceil(PAGE) + 2),
            None => all,
        };
        self.page_bytes().saturating_mul(pages as u64)
    }

    /// Bytes that the pages take now; shared ones are counted whole.
    pub fn held_bytes(&self) -> u64 {
        self.pages.len() as u64 * self.page_bytes()
    }

    /// The pages that it has: the number of each, which no other one has, and its bytes.
    pub fn held(&self) -> impl DoubleEndedIterator<Item = (u64, u64)> {
        let bytes = self.page_bytes();
        self.pages.iter().map(move |page| (page.id, bytes))
    }

    /// The first position that a token at `pos` sees.
    fn first_seen(&self, pos: usize) -> usize {
        self.window.map_or(0, |window| window.start(pos))
    }

    fn new_page(&self) -> Result<Page, OutOfMemory> {
        Ok(Page {
            id: Page::next_id(),
            filled: 0,
            keys: PageBuffer::new(self.ty.keys, self.kv_heads, self.key_len)?,
            values: PageBuffer::new(self.ty.values, self.kv_heads, self.value_len)?,
        })
    }

    /// One that is there already, or a new one.
    fn empty_page(&self, spare: &mut Option<Page>) -> Result<Page, OutOfMemory> {
        let spare = spare.take().map(|page| Page { id: Page::next_id(), filled: 0, ..page });
        spare.map_or_else(|| self.new_page(), Ok)
    }

    /// Gives up what tokens from `pos` on do not see; a page more is kept, so that some tokens can be taken
    /// back. Returns a page that nobody else has, to be used again.
    fn drop_unseen(&mut self, pos: usize) -> Option<Page> {
        let first = self.first_seen(pos) / PAGE;
        let mut spare = None;
        while self.first_page + 1 < first && !self.pages.is_empty() {
            spare = self.pages.pop_front().and_then(|page| Arc::try_unwrap(page).ok()).or(spare);
            self.first_page += 1;
        }
        spare
    }

    /// The page of a position, to be written to: new, or a copy where it is shared.
    fn page_mut(&mut self, pos: usize, spare: &mut Option<Page>) -> Result<&mut Page, OutOfMemory> {
        if self.pages.is_empty() {
            self.first_page = self.first_page.max(self.first_seen(pos) / PAGE);
        }
        let index = pos / PAGE - self.first_page;
        while self.pages.len() <= index {
            let page = self.empty_page(spare)?;
            self.pages.push_back(Arc::new(page));
        }
        if Arc::get_mut(&mut self.pages[index]).is_none() {
            let mut copy = self.empty_page(spare)?;
            copy.filled = self.pages[index].filled;
            copy.keys.copy_from(&self.pages[index].keys);
            copy.values.copy_from(&self.pages[index].values);
            self.pages[index] = Arc::new(copy);
        }
        Ok(Arc::get_mut(&mut self.pages[index]).expect("the page is not shared"))
    }

    /// The last position up to `pos` from which a pass can go on: `pos`, or 0 where the window has given up
    /// what a token there sees.
    pub fn last_before(&self, pos: usize) -> usize {
        if self.first_page * PAGE <= self.first_seen(pos) { pos } else { 0 }
    }

    /// Forgets all from position `past` on, which is such a position.
    pub fn rewind(&mut self, past: usize) {
        if past == 0 { self.clear() } else { self.truncate(past) }
    }

    fn truncate(&mut self, past: usize) {
        self.pages.truncate(past.div_ceil(PAGE).saturating_sub(self.first_page));
    }

    fn clear(&mut self) {
        self.pages.clear();
        self.first_page = 0;
    }

    /// Writes keys and values, `[tokens][kv_heads * len]` each, at positions from `first_pos` on.
    ///
    /// # Errors
    /// Where there is no memory for another page.
    pub fn store(
        &mut self,
        ops: &Ops,
        first_pos: usize,
        keys: &[f32],
        values: &[f32],
    ) -> Result<(), OutOfMemory> {
        let mut spare = self.drop_unseen(first_pos);
        let rotations = self.rotations();
        let (kv_heads, key_len, value_len) = (self.kv_heads, self.key_len, self.value_len);
        let tokens = keys.len() / (kv_heads * key_len);
        let mut done = 0;
        while done < tokens {
            let pos = first_pos + done;
            let n = (PAGE - pos % PAGE).min(tokens - done);
            let page = self.page_mut(pos, &mut spare)?;
            let rows = |len: usize| done * kv_heads * len..(done + n) * kv_heads * len;
            let first = pos % PAGE;
            page.fill_from(first);
            page.filled = first + n;
            let place = |len, rotation, keys| PlaceInPage { kv_heads, len, first, rotation, keys };
            ops.store_kv(&keys[rows(key_len)], page.keys.view_mut(), place(key_len, rotations[0], true));
            if value_len > 0 {
                let values = &values[rows(value_len)];
                ops.store_kv(values, page.values.view_mut(), place(value_len, rotations[1], false));
            }
            done += n;
        }
        Ok(())
    }

    /// Makes the pages ready for so many positions from `first_pos` on, which are stored afterwards.
    ///
    /// # Errors
    /// Where there is no memory for another page.
    pub fn reserve(&mut self, first_pos: usize, tokens: usize) -> Result<(), OutOfMemory> {
        let mut spare = self.drop_unseen(first_pos);
        let mut pos = first_pos;
        while pos < first_pos + tokens {
            self.page_mut(pos, &mut spare)?.fill_from(pos % PAGE);
            pos = (pos / PAGE + 1) * PAGE;
        }
        Ok(())
    }

    /// The numbers of the pages: as long as a page has its own, rows that are stored do not change.
    pub fn ids(&self) -> Vec<u64> {
        self.pages.iter().map(|page| page.id).collect()
    }

    /// The orders of the Hadamard matrices that keys and values are multiplied by before they are kept; 1:
    /// none.
    /// Of keys that are values as well nothing is rotated.
    pub fn rotations(&self) -> [usize; 2] {
        let order = |element: KvElement, rotation: usize| match element.is_quantised() && self.value_len > 0 {
            true => rotation,
            false => 1,
        };
        let KvType { keys, values } = self.ty;
        [order(keys, key_rotation(self.key_len)), order(values, value_rotation(self.value_len))]
    }

    /// Calls `f` with the pages.
    pub fn with<T>(&self, f: impl FnOnce(&KvPages<'_>) -> T) -> T {
        let keys: Vec<KvView<'_>> = self.pages.iter().map(|page| page.keys.view()).collect();
        let values: Vec<KvView<'_>> = self.pages.iter().map(|page| page.values.view()).collect();
        let values = Some(&values[..]).filter(|_| self.value_len > 0);
        f(&KvPages { first_page: self.first_page, keys: &keys, values })
    }
}
