//! Plans of models of known shapes, and of random ones.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::*;

const MB: u64 = 1_000_000;
const GIB: u64 = 1 << 30;

fn weight(role: Role, bytes: u64) -> WeightUse {
    WeightUse { role, bytes, span: bytes.next_multiple_of(4096) + 4096, device_bytes: None }
}

/// The shape of a Llama of 8 B parameters at Q4_K_M, its embedding left out.
fn dense() -> Vec<WeightUse> {
    let layer = [9 * MB, 3 * MB, 3 * MB, 9 * MB, 33 * MB, 33 * MB, 40 * MB];
    let layers = (0..32).flat_map(|_| layer.map(|bytes| weight(Role::Always, bytes)));
    let embedding = weight(Role::Rows, 295 * MB);
    [embedding].into_iter().chain(layers).chain([weight(Role::Always, 431 * MB)]).collect()
}

/// The shape of a Mixtral 8x7B.
fn moe() -> Vec<WeightUse> {
    let mut weights = vec![weight(Role::Rows, 74 * MB)];
    for layer in 0..32 {
        weights.extend([9 * MB, 5 * MB, 5 * MB, 9 * MB].map(|bytes| weight(Role::Always, bytes)));
        let down = if layer % 2 == 0 { 33 * MB } else { 48 * MB };
        weights.extend(experts(layer, (8, 2), &[33 * MB, 33 * MB, down]));
    }
    weights.push(weight(Role::Always, 107 * MB));
    weights
}

/// The experts of a layer, part by part, as merged tensors have them.
fn experts(layer: usize, (count, used): (usize, usize), parts: &[u64]) -> Vec<WeightUse> {
    let part = |&bytes: &u64| {
        (0..count).map(move |expert| weight(Role::Expert { layer, expert, count, used }, bytes))
    };
    parts.iter().flat_map(part).collect()
}

/// A model that mixes layers: one dense, then experts with a shared one beside them, in every third layer
/// dense again, with other counts and sizes in the second half, and merged gates there.
fn mixed() -> Vec<WeightUse> {
    let mut weights = vec![weight(Role::Rows, 50 * MB)];
    for layer in 0..12 {
        weights.extend([4 * MB, MB, MB, 4 * MB].map(|bytes| weight(Role::Always, bytes)));
        if layer % 3 == 0 {
            weights.extend([20 * MB; 3].map(|bytes| weight(Role::Always, bytes)));
            continue;
        }
        weights.extend([MB / 2, 3 * MB, 3 * MB, 3 * MB].map(|bytes| weight(Role::Always, bytes)));
        weights.extend(match layer {
            0..6 => experts(layer, (32, 4), &[2 * MB, 2 * MB, 3 * MB]),
            _ => experts(layer, (64, 2), &[4 * MB, 4 * MB]),
        });
    }
    weights.push(weight(Role::Always, 40 * MB));
    weights
}

fn planned(weights: &[WeightUse], budget: u64) -> Plan {
    plan(weights, &vec![false; weights.len()], budget, None).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_fits_is_mapped() {
    let all: u64 = dense().iter().map(|w| w.bytes).sum();
    assert!(planned(&dense(), all).is_mapped());
    assert!(!planned(&dense(), all - 1).is_mapped());
    // What is in memory anyway needs no room.
    let weights = dense();
    assert!(plan(&weights, &vec![true; weights.len()], 0, None).unwrap().is_mapped());
}

#[test]
fn a_dense_model_is_pinned_but_for_an_even_stream() {
    let weights = dense();
    let plan = planned(&weights, 4 * GIB);
    // 4 GiB less the ring are pinned, and what is left over is smaller than the smallest weight.
    assert_eq!(plan.ring_bytes, 4 * weights[1].span);
    assert!(plan.pinned_bytes + plan.ring_bytes <= 4 * GIB);
    assert!(plan.pinned_bytes + plan.ring_bytes + weights[2].span > 4 * GIB);
    let always: u64 = weights[1..].iter().map(|w| w.bytes).sum();
    let streamed = plan.streamed_bytes(&weights);
    assert!(always - streamed <= 4 * GIB);
    assert_eq!(plan.disk_bytes, streamed as f64);
    assert_eq!(plan.places[0], Place::File);
    // Each eighth of the layers streams about an eighth.
    for eighth in 0..8 {
        let part = 1 + eighth * 28..1 + (eighth + 1) * 28;
        let here: u64 = part.filter(|&i| plan.places[i] == Place::Streamed).map(|i| weights[i].bytes).sum();
        assert!(here.abs_diff(streamed / 8) <= 18 * MB, "{here} of {streamed}");
    }
}

#[test]
fn experts_share_what_the_rest_leaves() {
    let weights = moe();
    let plan = planned(&weights, 11 * GIB);
    let always = spans(&weights, &plan.places, |p| matches!(p, Place::Pinned { .. }));
    assert_eq!((plan.pinned_bytes, plan.ring_bytes), (always, 0));
    assert_eq!(plan.classes.iter().map(|c| c.members).collect::<Vec<_>>(), [128, 128]);
    assert!(plan.own_bytes() <= 11 * GIB && plan.own_bytes() > 11 * GIB - 100 * MB);
    // Both sizes are cached to the same share, which is that of the hits to expect.
    let share = |class: &SlotClass| class.slots as f64 / class.members as f64;
    let shares = [share(&plan.classes[0]), share(&plan.classes[1])];
    assert!((shares[0] - shares[1]).abs() < 0.01, "{shares:?}");
    let active = plan.active_bytes
        - weights.iter().filter(|w| w.role == Role::Always).map(|w| w.bytes as f64).sum::<f64>();
    assert!((plan.disk_bytes / active - (1.0 - shares[0])).abs() < 0.01);
    let seconds = disk_seconds([plan.disk_bytes], &[Some(1e9)]).unwrap();
    assert!((plan.tokens_per_second(seconds, 1e10, None) - 1e9 / plan.disk_bytes).abs() < 1e-9);
}

/// Disks read side by side: the time is that of the slowest for its bytes, so that bytes in the ratio of the
/// speeds are read at their sum.
#[test]
fn disks_take_the_time_of_the_slowest_for_its_bytes() {
    let speeds = [Some(2e9), Some(1e9)];
    assert_eq!(disk_seconds([4e9, 2e9], &speeds), Some(6e9 / 3e9));
    assert_eq!(disk_seconds([3e9, 3e9], &speeds), Some(3.0));
    assert_eq!(disk_seconds([6e9, 0.0], &speeds), Some(3.0));
    assert_eq!(disk_seconds([1e9, 9e9], &[Some(2e9), None]), Some(0.5));
    assert_eq!(disk_seconds([0.0, 9e9], &[Some(2e9), None]), None);
    assert_eq!(disk_seconds([], &[]), None);
}

#[test]
fn a_plan_says_what_each_weight_costs_a_disk() {
    let weights = moe();
    let plan = planned(&weights, 11 * GIB);
    let bytes: Vec<f64> = plan.disk_bytes_of(&weights).collect();
    assert_eq!(bytes.len(), weights.len());
    assert!((bytes.iter().sum::<f64>() - plan.disk_bytes).abs() < 1.0);
    let reads = |(bytes, w): (&f64, &WeightUse)| (*bytes > 0.0) == matches!(w.role, Role::Expert { .. });
    assert!(bytes.iter().zip(&weights).all(reads));
}

#[test]
fn the_least_budget_is_enough_and_less_is_not() {
    for weights in [dense(), moe(), mixed()] {
        let none = vec![false; weights.len()];
        let least = plan(&weights, &none, 0, None).unwrap_err().least;
        let plan_of_least = planned(&weights, least);
        assert!(plan_of_least.own_bytes() <= least);
        assert_eq!(
            plan(&weights, &none, least - 1, None).unwrap_err(),
            Shortage { budget: least - 1, least }
        );
    }
}

/// Some layers with and without experts, and a small weight of a role behind each.
fn random_model(random: &mut impl FnMut(u32) -> u64, last: Role) -> Vec<WeightUse> {
    let mut weights: Vec<WeightUse> = Vec::new();
    for layer in 0..1 + random(8) as usize {
        weights.extend((0..random(6)).map(|_| weight(Role::Always, 1 + random(100_000))));
        let count = 1 + random(9) as usize;
        let parts: Vec<u64> = (0..random(4)).map(|_| 1 + random(30_000)).collect();
        weights.extend(experts(layer, (count, 1 + random(count as u32) as usize), &parts));
        weights.push(weight(last, 100));
    }
    weights
}

#[test]
fn no_plan_exceeds_its_budget_and_more_memory_reads_no_more() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random = |n: u32| u64::from(rng.next_u32() % n);
    for _ in 0..300 {
        let weights = random_model(&mut random, Role::Once);
        let none = vec![false; weights.len()];
        let total: u64 = weights.iter().map(|w| w.bytes).sum();
        let mut before = f64::INFINITY;
        for budget in (0..=20).map(|i| total * i / 20) {
            let plan = match plan(&weights, &none, budget, None) {
                Ok(plan) => plan,
                Err(shortage) => {
                    assert!(shortage.least > budget);
                    continue;
                }
            };
            assert!(plan.is_mapped() || plan.own_bytes() <= budget);
            let mut end = 0;
            for (place, w) in plan.places.iter().zip(&weights) {
                match *place {
                    Place::Pinned { at } => {
                        assert_eq!(at, end);
                        end += w.span;
                    }
                    Place::Streamed => assert!(2 * w.span <= plan.ring_bytes),
                    Place::Cached { class, at, .. } => assert!(at + w.span <= plan.classes[class].slot_bytes),
                    Place::Mapped | Place::File | Place::Device => {}
                }
            }
            assert_eq!(end, plan.pinned_bytes);
            assert!(plan.classes.iter().all(|c| c.slots <= c.members && c.slots >= c.members.min(2)));
            // Slots are whole: what a step more of memory gains may be lost to rounding, of one weight at
            // most.
            assert!(plan.disk_bytes <= before + 400_000.0, "{} {before}", plan.disk_bytes);
            before = plan.disk_bytes;
        }
    }
}

/// Numbers of the mixed model, counted by hand: what is read always is pinned, experts of a size share slots.
#[test]
fn layers_with_and_without_experts_are_planned_together() {
    let weights = mixed();
    let always: u64 = weights.iter().filter(|w| w.role == Role::Always).map(|w| w.span).sum();
    let plan = planned(&weights, always + 500 * MB);
    assert_eq!((plan.pinned_bytes, plan.ring_bytes), (always, 0));
    // 4 layers of 32 experts and 4 of 64, each size in a class of its own.
    let [first, second] = plan.classes[..] else { panic!("{:?}", plan.classes) };
    let pages = |bytes: u64| bytes.next_multiple_of(4096) + 4096;
    assert_eq!((first.members, first.slot_bytes), (128, 2 * pages(2 * MB) + pages(3 * MB)));
    assert_eq!((second.members, second.slot_bytes), (256, 2 * pages(4 * MB)));
    // A token reads 4 x 4 of the first and 4 x 2 of the second, and memory is shared in that ratio.
    assert!((first.slots as f64 / second.slots as f64 - 2.0).abs() < 0.1, "{:?}", plan.classes);
    assert!(plan.own_bytes() <= plan.budget && plan.own_bytes() + second.slot_bytes > plan.budget);
    let missing = |class: SlotClass| 1.0 - class.slots as f64 / class.members as f64;
    let disk = 16.0 * 7e6 * missing(first) + 8.0 * 8e6 * missing(second);
    assert!((plan.disk_bytes - disk).abs() < 1.0, "{} {disk}", plan.disk_bytes);
    let dense: u64 = weights.iter().filter(|w| w.role == Role::Always).map(|w| w.bytes).sum();
    assert!((plan.active_bytes - (dense as f64 + 16.0 * 7e6 + 8.0 * 8e6)).abs() < 1.0);
}

/// The matrices of an expert lie in its slot one behind another, in the order of registration, whatever
/// their number.
#[test]
fn an_expert_is_a_unit_of_all_its_matrices() {
    for weights in [moe(), mixed()] {
        let plan = planned(&weights, weights.iter().map(|w| w.bytes).sum::<u64>() / 2);
        let mut ends: HashMap<usize, (Role, u64)> = HashMap::new();
        for (weight, place) in weights.iter().zip(&plan.places) {
            let Place::Cached { unit, at, .. } = *place else { continue };
            let (role, end) = ends.entry(unit).or_insert((weight.role, 0));
            assert_eq!((*role, *end), (weight.role, at));
            *end += weight.span;
        }
        assert_eq!(ends.len(), plan.classes.iter().map(|class| class.members).sum::<usize>());
        let mut roles: Vec<Role> = ends.into_values().map(|(role, _)| role).collect();
        roles.sort_by_key(|role| match role {
            Role::Expert { layer, expert, .. } => (*layer, *expert),
            _ => panic!("no expert"),
        });
        assert!(roles.windows(2).all(|pair| pair[0] != pair[1]), "one unit an expert");
    }
}

/// An expert of which a part is in memory anyway takes a slot for the rest.
#[test]
fn parts_in_memory_need_no_slot() {
    let weights = experts(0, (8, 2), &[2 * MB, 2 * MB, 3 * MB]);
    let in_memory: Vec<bool> = (0..weights.len()).map(|i| i < 8).collect();
    let plan = plan(&weights, &in_memory, 20 * MB, None).unwrap();
    assert!(plan.places[..8].iter().all(|place| *place == Place::Mapped));
    assert_eq!(plan.classes.len(), 1);
    assert_eq!(plan.classes[0].slot_bytes, weights[8].span + weights[16].span);
}

/// With a device that computes some of the weights.
fn with_device(weights: &[WeightUse], computes: impl Fn(usize) -> bool) -> Vec<WeightUse> {
    let of_device = |(i, w): (usize, &WeightUse)| WeightUse {
        device_bytes: (!matches!(w.role, Role::Once | Role::Rows) && computes(i)).then_some(w.bytes),
        ..*w
    };
    weights.iter().enumerate().map(of_device).collect()
}

/// All of a device for weights.
fn of_weights(all: u64) -> DeviceBytes {
    DeviceBytes { all, kv: 0 }
}

#[test]
fn what_is_always_used_goes_to_the_device_before_experts() {
    let weights = with_device(&moe(), |_| true);
    let none = vec![false; weights.len()];
    let sum =
        |role: fn(&Role) -> bool| -> u64 { weights.iter().filter(|w| role(&w.role)).map(|w| w.bytes).sum() };
    let always = sum(|role| *role == Role::Always);
    let experts = sum(|role| matches!(role, Role::Expert { .. }));
    // Half of the experts beside.
    let room = always + experts / 2;
    let plan = plan(&weights, &none, u64::MAX, Some(of_weights(room))).unwrap();
    assert!(plan.is_mapped() && plan.is_placed());
    let device = plan.device.as_ref().unwrap();
    assert_eq!(device.always_bytes, always);
    for (place, w) in plan.places.iter().zip(&weights) {
        assert_eq!(*place == Place::Device, w.role == Role::Always);
    }
    let left = room - always - device.cache_bytes();
    assert!(left < device.classes.iter().map(|class| class.slot_bytes).max().unwrap(), "{left}");
    // A token uses 2 of 8 experts, half of which are there.
    let half = experts as f64 / 4.0 / 2.0;
    assert!((device.active_bytes - (always as f64 + half)).abs() < 0.01 * half, "{device:?}");
    assert!((plan.active_bytes - half).abs() < 0.01 * half, "{}", plan.active_bytes);
    // In memory that is too small for the experts what they miss comes from disk in part.
    let small = super::plan(&weights, &none, experts / 4, Some(of_weights(room))).unwrap();
    assert_eq!(small.device, plan.device);
    assert_eq!(small.pinned_bytes, 0, "nothing that is on the device");
    let expected = half * (1.0 - small.cache_bytes() as f64 / experts as f64);
    assert!((small.disk_bytes - expected).abs() < 0.02 * expected, "{} {expected}", small.disk_bytes);
}

#[test]
fn keys_and_values_come_before_experts() {
    let weights = with_device(&moe(), |_| true);
    let none = vec![false; weights.len()];
    let always: u64 = weights.iter().filter(|w| w.role == Role::Always).map(|w| w.bytes).sum();
    let kv = always / 2;
    let on_device = |all: u64| {
        let bytes = DeviceBytes { all, kv };
        plan(&weights, &none, u64::MAX, Some(bytes))
            .unwrap()
            .device
            .map_or((0, 0, 0), |device| (device.kv_bytes, device.always_bytes, device.cache_bytes()))
    };
    assert_eq!(on_device(always + kv), (kv, always, 0));
    let (all_kv, all_always, experts) = on_device(2 * always + kv);
    assert!((all_kv, all_always) == (kv, always) && experts > 0);
    // Where there is too little for both, each has its share.
    let (half_kv, half_always, experts) = on_device((always + kv) / 2);
    assert!(half_kv.abs_diff(kv / 2) <= 1 && half_always <= always.div_ceil(2) && experts == 0, "{half_kv}");
}

#[test]
fn no_plan_exceeds_its_device() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut random = |n: u32| u64::from(rng.next_u32() % n);
    for _ in 0..300 {
        let weights = random_model(&mut random, Role::Rows);
        let computed: Vec<bool> = weights.iter().map(|_| random(10) > 0).collect();
        let weights = with_device(&weights, |i| computed[i]);
        let none = vec![false; weights.len()];
        let total: u64 = weights.iter().map(|w| w.bytes).sum();
        for room in [0, 1, total / 3, total, 2 * total].map(|room| room + random(1000)) {
            let budget = random(2 * total as u32);
            let kv = if random(2) == 0 { 0 } else { random(total as u32) };
            let bytes = DeviceBytes { all: room, kv };
            let Ok(plan) = plan(&weights, &none, budget, Some(bytes)) else { continue };
            assert!(plan.is_mapped() || plan.own_bytes() <= budget);
            let Some(device) = &plan.device else { continue };
            assert!(
                device.kv_bytes <= kv && device.kv_bytes + device.always_bytes + device.cache_bytes() <= room
            );
            let there = plan.places.iter().zip(&weights).filter(|(place, _)| **place == Place::Device);
            assert_eq!(there.map(|(_, w)| w.device_bytes.unwrap()).sum::<u64>(), device.always_bytes);
            let mut slots: HashMap<usize, (Role, u64)> = HashMap::new();
            for (w, expert) in weights.iter().zip(&device.experts) {
                let Some((class, unit)) = *expert else { continue };
                let (role, bytes) = slots.entry(unit).or_insert((w.role, 0));
                assert_eq!(*role, w.role, "one unit an expert");
                *bytes += w.device_bytes.expect("an expert that is computed as a whole");
                assert!(*bytes <= device.classes[class].slot_bytes);
            }
            assert_eq!(slots.len(), device.classes.iter().map(|class| class.members).sum::<usize>());
            let used = weights.iter().map(|w| share(w) * w.bytes as f64).sum::<f64>();
            assert!((device.active_bytes + plan.active_bytes - used).abs() < 1e-6 * used.max(1.0));
            assert!(plan.disk_bytes <= plan.active_bytes + 1e-6);
        }
    }
}
