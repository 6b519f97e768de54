//! Copies of pages of keys and values on the device. The host's are the truth: a copy is found by the number
//! of its page, and knows how many of its rows are there.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::device::{DeviceError, KvKind, KvLayout, Memory, Queue};
use crate::kernels::ops::{KvPages, KvView, PAGE};

use super::super::state::{KvElement, KvType};
use super::There;

/// A place in the arena, and what is there.
#[derive(Debug)]
struct Copied {
    page: u64,
    /// Rows that are there for good, and those that a chain has stored beside them.
    rows: usize,
    stored: usize,
    /// The last pass that wanted it.
    wanted: u64,
}

/// See the module.
#[derive(Debug)]
pub(in crate::model) struct PageCopies {
    /// Heads, elements of a key and of a value, of every slot of pages.
    shapes: Vec<[usize; 3]>,
    /// Where they lie: `None` before the first is wanted, and where there is no room.
    arena: Option<Arc<Memory>>,
    is_open: bool,
    /// Bytes of a place, and how many there are.
    place_bytes: usize,
    places: usize,
    copies: Vec<Copied>,
    by_page: HashMap<u64, usize>,
    pass: u64,
}

/// How a slot's pages lie on a device.
pub(super) fn layout([kv_heads, key_len, value_len]: [usize; 3], ty: KvType) -> KvLayout {
    let kind = |element: KvElement| match element {
        KvElement::F16 => KvKind::F16,
        KvElement::F32 => KvKind::F32,
        KvElement::Q8_0 => KvKind::Q8_0,
        KvElement::Q4_0 => KvKind::Q4_0,
    };
    KvLayout { kv_heads, key_len, value_len, kinds: [kind(ty.keys), kind(ty.values)] }
}

impl PageCopies {
    pub fn new(shapes: Vec<[usize; 3]>) -> PageCopies {
        PageCopies {
            shapes,
            arena: None,
            is_open: false,
            place_bytes: 0,
            places: 0,
            copies: Vec::new(),
            by_page: HashMap::new(),
            pass: 0,
        }
    }

    /// Another device: nothing is there.
    pub fn forget(&mut self) {
        *self = PageCopies::new(std::mem::take(&mut self.shapes));
    }

    /// A pass begins: what it wants stays until the next. What one that was broken off has stored is nowhere.
    pub fn begin_pass(&mut self) {
        self.pass += 1;
        self.take_back();
    }

    /// What chains have stored is on the host as well.
    pub fn keep(&mut self) {
        self.copies.iter_mut().for_each(|copy| copy.rows = copy.stored);
    }

    /// What a chain has stored is nowhere.
    pub fn take_back(&mut self) {
        self.copies.iter_mut().for_each(|copy| copy.stored = copy.rows);
    }

    /// Takes as much memory as there is for keys and values of this type.
    fn open(&mut self, there: There<'_>, ty: KvType, planned: u64) -> Result<(), DeviceError> {
        self.is_open = true;
        let bytes = |&shape: &[usize; 3]| layout(shape, ty).page_bytes().iter().sum();
        self.place_bytes = self.shapes.iter().map(bytes).max().unwrap_or(0);
        let most = planned.min(there.device.info().most_allocated_bytes);
        self.places = usize::try_from(most).unwrap_or(usize::MAX) / self.place_bytes.max(1);
        if self.places > 0 {
            self.arena = Some(Arc::new(there.device.allocate(self.places * self.place_bytes)?));
        }
        Ok(())
    }

    /// The memory of pages of this type, which may take so many bytes; `None` where there is none.
    pub fn arena(
        &mut self,
        there: There<'_>,
        ty: KvType,
        bytes: impl FnOnce() -> u64,
    ) -> Result<Option<Arc<Memory>>, DeviceError> {
        if !self.is_open {
            self.open(there, ty, bytes())?;
        }
        Ok(self.arena.clone())
    }

    /// The place of a page: its own, one that is free, or that of the copy that was wanted least recently,
    /// unless this pass wants it.
    fn place(&mut self, page: u64) -> Option<usize> {
        if let Some(&at) = self.by_page.get(&page) {
            self.copies[at].wanted = self.pass;
            return Some(at);
        }
        let copy = Copied { page, rows: 0, stored: 0, wanted: self.pass };
        let at = if self.copies.len() < self.places {
            self.copies.push(copy);
            self.copies.len() - 1
        } else {
            let (at, victim) = self.copies.iter().enumerate().min_by_key(|(_, copy)| copy.wanted)?;
            if victim.wanted == self.pass {
                return None;
            }
            self.by_page.remove(&victim.page);
            self.copies[at] = copy;
            at
        };
        self.by_page.insert(page, at);
        Some(at)
    }

    /// Where keys and values of some pages lie, all of their rows before position `end` there; `numbers` are
    /// those of the host's pages. `None` where there is no room for them all.
    pub fn bring(
        &mut self,
        there: There<'_>,
        arena: &Memory,
        layout: &KvLayout,
        (host, numbers): (&KvPages<'_>, &[u64]),
        (pages, end): (Range<usize>, usize),
    ) -> Result<Option<Vec<[usize; 2]>>, DeviceError> {
        let bytes = layout.page_bytes();
        if bytes.iter().sum::<usize>() > self.place_bytes {
            return Ok(None);
        }
        let mut places = Vec::with_capacity(pages.len());
        for page in pages {
            let index = page - host.first_page;
            let Some(at) = self.place(numbers[index]) else { return Ok(None) };
            let place = [at * self.place_bytes, at * self.place_bytes + bytes[0]];
            let rows = end.saturating_sub(page * PAGE).min(PAGE);
            if self.copies[at].stored < rows {
                upload(there, arena, place[0], host.keys[index])?;
                if let Some(values) = host.values {
                    upload(there, arena, place[1], values[index])?;
                }
                (self.copies[at].rows, self.copies[at].stored) = (rows, rows);
            }
            places.push(place);
        }
        Ok(Some(places))
    }

    /// Rows of pages up to position `end` have been stored on the device; the first is page `first`.
    pub fn stored(&mut self, numbers: &[u64], first: usize, end: usize) {
        for (page, number) in (first..).zip(numbers) {
            if let Some(&at) = self.by_page.get(number) {
                let rows = end.saturating_sub(page * PAGE).min(PAGE);
                self.copies[at].stored = self.copies[at].stored.max(rows);
            }
        }
    }
}

/// Copies keys or values of a page, for what is launched afterwards.
fn upload(there: There<'_>, arena: &Memory, at: usize, view: KvView<'_>) -> Result<(), DeviceError> {
    let parts: [&[u8]; 2] = match view {
        KvView::F16(v) => [v.as_bytes(), &[]],
        KvView::F32(v) => [v.as_bytes(), &[]],
        KvView::Q8_0(scales, v) => [scales.as_bytes(), v.as_bytes()],
        KvView::Q4_0(scales, v) => [scales.as_bytes(), v],
    };
    let mut at = at;
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        there.device.write(Queue::Compute, arena, at, part)?;
        at += part.len();
    }
    Ok(())
}
