//! Rows of pages in a file: what a slot holds of some positions, to be read back by another run.

use std::io::{self, Read, Write};
use std::ops::Range;

use super::{PageBuffer, Pages};
use crate::kernels::ops::PAGE;

/// Runs of elements of rows `rows` of a page `[kv_heads][PAGE][len]`, in the order in which they lie there.
fn runs(rows: Range<usize>, kv_heads: usize, len: usize) -> impl Iterator<Item = Range<usize>> {
    let whole = rows == (0..PAGE);
    let (runs, head) = if whole { (1, 0) } else { (kv_heads, PAGE * len) };
    let end = if whole { kv_heads * PAGE * len } else { rows.end * len };
    let start = rows.start * len;
    (0..runs).map(move |i| start + i * head..end + i * head)
}

/// Rows cut at ends of pages: the page, and the rows of it.
fn by_page(rows: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    (rows.start / PAGE..rows.end.div_ceil(PAGE)).map(move |page| {
        let first = page * PAGE;
        (page, rows.start.max(first) - first..rows.end.min(first + PAGE) - first)
    })
}

impl Pages {
    /// Bytes of so many rows in a file.
    pub fn rows_bytes(&self, rows: usize) -> u64 {
        // All rows of a page take the same.
        self.page_bytes() / PAGE as u64 * rows as u64
    }

    /// Begins at a page: those before count as given up. Nothing is there yet.
    pub fn begin_at(&mut self, page: usize) {
        debug_assert!(self.pages.is_empty());
        self.first_page = page;
    }

    /// Whether the pages of some rows are still there.
    pub fn has(&self, rows: &Range<usize>) -> bool {
        let end = (self.first_page + self.pages.len()) * PAGE;
        rows.is_empty() || (self.first_page * PAGE <= rows.start && rows.end <= end)
    }

    /// Writes some rows, page by page keys before values.
    ///
    /// # Panics
    /// Where it does not have them.
    pub fn write_rows(&self, rows: Range<usize>, out: &mut impl Write) -> io::Result<()> {
        for (page, rows) in by_page(rows) {
            let page = &self.pages[page - self.first_page];
            for (buffer, len) in [(&page.keys, self.key_len), (&page.values, self.value_len)] {
                let mut runs = runs(rows.clone(), self.kv_heads, len);
                runs.try_for_each(|run| buffer.write_to(run, out))?;
            }
        }
        Ok(())
    }

    /// Reads some rows: those behind what is there, or the first of the page that it begins at.
    pub fn read_rows(&mut self, rows: Range<usize>, from: &mut impl Read) -> io::Result<()> {
        let (kv_heads, lens) = (self.kv_heads, [self.key_len, self.value_len]);
        for (page, rows) in by_page(rows) {
            let page = self.page_mut(page * PAGE, &mut None).map_err(|_| io::ErrorKind::OutOfMemory)?;
            page.fill_from(rows.start);
            page.filled = rows.end;
            let buffers: [&mut PageBuffer; 2] = [&mut page.keys, &mut page.values];
            for (buffer, len) in buffers.into_iter().zip(lens) {
                let mut runs = runs(rows.clone(), kv_heads, len);
                runs.try_for_each(|run| buffer.read_from(run, from))?;
            }
        }
        Ok(())
    }
}
