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

use crate::kernels::ops::{KvPages, KvView, KvViewMut, Ops, PAGE, Window};
use crate::store::{OutOfMemory, zeroed};

use super::numbers::{read_numbers, write_numbers};

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Half the memory; keys and values rounded to nearest even.
    #[default]
    F16,
    F32,
}

impl KvType {
    /// Bytes of an element.
    fn bytes(self) -> usize {
        match self {
            KvType::F16 => size_of::<u16>(),
            KvType::F32 => size_of::<f32>(),
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KvType::F16 => "f16",
            KvType::F32 => "f32",
        })
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(name: &str) -> Result<KvType, String> {
        match name {
            "f16" => Ok(KvType::F16),
            "f32" => Ok(KvType::F32),
            _ => Err("f16 and f32 are known".to_owned()),
        }
    }
}

/// Keys or values of a page: `[kv_heads][PAGE][len]`.
#[derive(Clone, Debug)]
enum PageBuffer {
    F16(Vec<u16>),
    F32(Vec<f32>),
}

impl PageBuffer {
    fn new(ty: KvType, kv_heads: usize, len: usize) -> Result<PageBuffer, OutOfMemory> {
        let sizes = [kv_heads, PAGE, len];
        Ok(match ty {
            KvType::F16 => PageBuffer::F16(zeroed(&sizes, "the KV cache")?),
            KvType::F32 => PageBuffer::F32(zeroed(&sizes, "the KV cache")?),
        })
    }

    fn view(&self) -> KvView<'_> {
        match self {
            PageBuffer::F16(v) => KvView::F16(v),
            PageBuffer::F32(v) => KvView::F32(v),
        }
    }

    fn view_mut(&mut self) -> KvViewMut<'_> {
        match self {
            PageBuffer::F16(v) => KvViewMut::F16(v),
            PageBuffer::F32(v) => KvViewMut::F32(v),
        }
    }

    /// Takes over another's values; both are of the same size and type.
    fn copy_from(&mut self, other: &PageBuffer) {
        match (self, other) {
            (PageBuffer::F16(to), PageBuffer::F16(from)) => to.copy_from_slice(from),
            (PageBuffer::F32(to), PageBuffer::F32(from)) => to.copy_from_slice(from),
            _ => unreachable!("pages of one layer are of one type"),
        }
    }

    /// Writes some of its elements as they are kept, little-endian.
    fn write_to(&self, elements: Range<usize>, out: &mut impl Write) -> io::Result<()> {
        match self {
            PageBuffer::F16(v) => write_numbers(&v[elements], u16::to_le_bytes, out),
            PageBuffer::F32(v) => write_numbers(&v[elements], f32::to_le_bytes, out),
        }
    }

    /// Reads what [`PageBuffer::write_to`] wrote.
    fn read_from(&mut self, elements: Range<usize>, from: &mut impl Read) -> io::Result<()> {
        match self {
            PageBuffer::F16(v) => read_numbers(&mut v[elements], u16::from_le_bytes, from),
            PageBuffer::F32(v) => read_numbers(&mut v[elements], f32::from_le_bytes, from),
        }
    }
}

/// Keys and values of [`PAGE`] positions of a layer.
#[derive(Debug)]
struct Page {
    keys: PageBuffer,
    values: PageBuffer,
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

    /// Bytes of a page.
    fn page_bytes(&self) -> u64 {
        (PAGE * self.kv_heads * (self.key_len + self.value_len) * self.ty.bytes()) as u64
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

    /// The first position that a token at `pos` sees.
    fn first_seen(&self, pos: usize) -> usize {
        self.window.map_or(0, |window| window.start(pos))
    }

    fn new_page(&self) -> Result<Page, OutOfMemory> {
        Ok(Page {
            keys: PageBuffer::new(self.ty, self.kv_heads, self.key_len)?,
            values: PageBuffer::new(self.ty, self.kv_heads, self.value_len)?,
        })
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
            let page = spare.take().map_or_else(|| self.new_page(), Ok)?;
            self.pages.push_back(Arc::new(page));
        }
        if Arc::get_mut(&mut self.pages[index]).is_none() {
            let mut copy = spare.take().map_or_else(|| self.new_page(), Ok)?;
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
        let (kv_heads, key_len, value_len) = (self.kv_heads, self.key_len, self.value_len);
        let tokens = keys.len() / (kv_heads * key_len);
        let mut done = 0;
        while done < tokens {
            let pos = first_pos + done;
            let n = (PAGE - pos % PAGE).min(tokens - done);
            let page = self.page_mut(pos, &mut spare)?;
            let rows = |len: usize| done * kv_heads * len..(done + n) * kv_heads * len;
            ops.store_kv(&keys[rows(key_len)], page.keys.view_mut(), kv_heads, key_len, pos % PAGE);
            if value_len > 0 {
                let values = &values[rows(value_len)];
                ops.store_kv(values, page.values.view_mut(), kv_heads, value_len, pos % PAGE);
            }
            done += n;
        }
        Ok(())
    }

    /// Calls `f` with the pages.
    pub fn with<T>(&self, f: impl FnOnce(&KvPages<'_>) -> T) -> T {
        let keys: Vec<KvView<'_>> = self.pages.iter().map(|page| page.keys.view()).collect();
        let values: Vec<KvView<'_>> = self.pages.iter().map(|page| page.values.view()).collect();
        let values = Some(&values[..]).filter(|_| self.value_len > 0);
        f(&KvPages { first_page: self.first_page, keys: &keys, values })
    }
}
