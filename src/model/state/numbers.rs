//! Numbers in a file: little-endian, whatever the machine.

use std::io::{self, Read, Write};

/// Numbers that are turned at a time.
const CHUNK: usize = 1 << 14;

/// Writes numbers one after another.
pub(super) fn write_numbers<T: Copy, const N: usize>(
    numbers: &[T],
    bytes_of: impl Fn(T) -> [u8; N],
    out: &mut impl Write,
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK.min(numbers.len()) * N];
    for chunk in numbers.chunks(CHUNK) {
        let bytes = &mut bytes[..chunk.len() * N];
        for (to, &number) in bytes.as_chunks_mut().0.iter_mut().zip(chunk) {
            *to = bytes_of(number);
        }
        out.write_all(bytes)?;
    }
    Ok(())
}

/// Reads numbers one after another.
pub(super) fn read_numbers<T, const N: usize>(
    numbers: &mut [T],
    of_bytes: impl Fn([u8; N]) -> T,
    from: &mut impl Read,
) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK.min(numbers.len()) * N];
    for chunk in numbers.chunks_mut(CHUNK) {
        let bytes = &mut bytes[..chunk.len() * N];
        from.read_exact(bytes)?;
        for (&bytes, number) in bytes.as_chunks().0.iter().zip(chunk) {
            *number = of_bytes(bytes);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_as_they_were() {
        for n in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1] {
            let numbers: Vec<f32> =
                (0..n as u32).map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9))).collect();
            let mut bytes = Vec::new();
            write_numbers(&numbers, f32::to_le_bytes, &mut bytes).unwrap();
            assert_eq!(bytes.len(), 4 * n);
            assert_eq!(bytes.get(..4), numbers.first().map(|x| x.to_le_bytes()).as_ref().map(|b| &b[..]));
            let mut back = vec![0.0f32; n];
            read_numbers(&mut back, f32::from_le_bytes, &mut bytes.as_slice()).unwrap();
            assert!(numbers.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()), "{n}");
            let cut = bytes.len().saturating_sub(1);
            assert_eq!(read_numbers(&mut back, f32::from_le_bytes, &mut &bytes[..cut]).is_err(), n > 0);
        }
    }
}
