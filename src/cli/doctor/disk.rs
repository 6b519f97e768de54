//! How fast a disk reads, by way of reading.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::{CliError, InFile, output};
use crate::gguf::{Gguf, OpenedFile, PartBytes};
use crate::store::{ReadWay, free_disk_bytes, read_speed_by};

/// What a way of reading is measured for.
const TIME: Duration = Duration::from_millis(500);
const WAYS: [ReadWay; 5] = [
    ReadWay { direct: false, readers: 1 },
    ReadWay { direct: false, readers: 6 },
    ReadWay { direct: true, readers: 1 },
    ReadWay { direct: true, readers: 6 },
    ReadWay { direct: true, readers: 24 },
];

/// The file that is written to measure a folder's disk, and what writing it may take.
const FILE_BYTES: u64 = 256 << 20;
const STEP_BYTES: usize = 16 << 20;
const WRITE_TIME: Duration = Duration::from_secs(4);
/// What is left to others on that disk.
const LEFT_BYTES: u64 = 1 << 30;

/// A disk, by the file that was read or the folder.
#[derive(Debug, Serialize)]
pub struct DiskSpeeds {
    pub path: String,
    pub ways: Vec<WaySpeed>,
}

#[derive(Debug, Serialize)]
pub struct WaySpeed {
    /// Around the page cache.
    pub direct: bool,
    /// Reads at a time, of 1 MiB.
    pub readers: usize,
    /// `null` where the file is too small to tell, or the file system has no direct reads.
    pub bytes_s: Option<f64>,
}

impl DiskSpeeds {
    /// The fastest way.
    pub fn best(&self) -> Option<f64> {
        self.ways.iter().filter_map(|way| way.bytes_s).reduce(f64::max)
    }

    fn of(path: &Path, file: &Arc<OpenedFile>, time: Duration) -> Result<DiskSpeeds, CliError> {
        let speed = |way: ReadWay| -> Result<WaySpeed, CliError> {
            let ReadWay { direct, readers } = way;
            Ok(WaySpeed { direct, readers, bytes_s: read_speed_by(file, way, time)? })
        };
        let ways = WAYS.into_iter().map(speed).collect::<Result<_, _>>()?;
        Ok(DiskSpeeds { path: path.display().to_string(), ways })
    }
}

/// The disk of a model, by the largest of its files; `None` where it is in memory.
pub fn of_model(gguf: &Gguf) -> Result<Option<DiskSpeeds>, CliError> {
    let files = gguf.parts.iter().filter_map(|part| match &part.bytes {
        PartBytes::File(file) => Some(file),
        PartBytes::Memory(_) => None,
    });
    let largest = files.max_by_key(|file| file.bytes());
    largest.map(|file| DiskSpeeds::of(file.path(), file, TIME)).transpose()
}

/// The disk of a folder, by a file that has no name there, so that nothing is left behind whatever happens.
pub fn of_folder(folder: &Path) -> Result<DiskSpeeds, CliError> {
    measure(folder, FILE_BYTES, TIME)
}

/// The same with a file of so many bytes, each way of reading for so long.
fn measure(folder: &Path, bytes: u64, time: Duration) -> Result<DiskSpeeds, CliError> {
    if let Some(free) = free_disk_bytes(folder).filter(|&free| free < bytes + LEFT_BYTES) {
        let [free, needed] = [free, bytes + LEFT_BYTES].map(output::bytes);
        let message = format!("{free} are free there, where {needed} are needed to measure");
        return Err(CliError::new(message).in_file(folder));
    }
    let mut file = tempfile::tempfile_in(folder).in_file(folder)?;
    let (started, mut written) = (Instant::now(), 0);
    // Disks and file systems that compress must not find anything to compress.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut step = vec![0u8; STEP_BYTES];
    while written < bytes && started.elapsed() < WRITE_TIME {
        for word in step.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        file.write_all(&step).and_then(|()| file.sync_data()).in_file(folder)?;
        written += STEP_BYTES as u64;
    }
    let file = OpenedFile::of(file, folder).in_file(folder)?;
    DiskSpeeds::of(folder, &Arc::new(file), time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let time = Duration::from_millis(20);
        let speeds = measure(dir.path(), 64 << 20, time).unwrap();
        assert_eq!(speeds.ways.len(), WAYS.len());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(speeds.best().is_some_and(|speed| speed > 0.0));
        assert!(measure(&dir.path().join("missing"), 64 << 20, time).is_err());
        // More than any disk has.
        let error = measure(dir.path(), 1 << 60, time).unwrap_err().message();
        assert!(error.contains("are free there, where 1.15 EB are needed"), "{error}");
    }
}
