//! Drivers, on whatever OpenCL finds: PoCL at least, where it is installed.

use std::sync::Arc;

use super::{Arg, DEADLINE, Driver, Launch, Memory, Programs, Queue, devices};

const SOURCE: &str = r#"
#pragma OPENCL FP_CONTRACT OFF
__kernel void add(__global const uint* a, uint b, __global uint* to, ulong n) {
    size_t i = get_global_id(0);
    if (i < n) to[i] = a[i] + b;
}
"#;

/// A device that runs OpenCL C on a CPU.
fn pocl(source: &str) -> Option<Arc<dyn Driver>> {
    let found = devices().unwrap_or_default().into_iter().find(|found| found.info.is_cpu);
    let Some(found) = found else {
        eprintln!("skipped: no OpenCL for the CPU (PoCL) is installed");
        return None;
    };
    Some(found.open(source, &Programs::default(), DEADLINE).expect("it opens"))
}

#[test]
fn bytes_go_there_through_a_kernel_and_back() {
    let Some(driver) = pocl(SOURCE) else { return };
    for n in [1usize, 63, 64, 1000, 3 << 20] {
        let a: Vec<u32> = (0..n as u32).collect();
        let bytes: Vec<u8> = a.iter().flat_map(|v| v.to_le_bytes()).collect();
        let from = Memory::allocate(&driver, bytes.len()).unwrap();
        let to = Memory::allocate(&driver, bytes.len()).unwrap();
        for queue in [Queue::Compute, Queue::Copies] {
            driver.write(queue, from.handle(), 0, &bytes).unwrap();
            let args = [Arg::Memory(&from), Arg::U32(7), Arg::Memory(&to), Arg::U64(n as u64)];
            let groups = [n.div_ceil(64) as u32, 1];
            driver.launch(&Launch { kernel: "add", groups, lanes: 64, args: &args }).unwrap();
            let mut back = vec![0; bytes.len()];
            driver.read(to.handle(), 0, &mut back).unwrap();
            let same = back.chunks(4).zip(&a).all(|(b, a)| b == (a + 7).to_le_bytes());
            assert!(same, "{n} {queue:?}");
        }
    }
}
