//! Attention on a device, over copies of the sequences' pages.

use crate::device::{DeviceActivations, DeviceKvPages, DeviceRopeTable, DeviceSlice};
use crate::kernels::ops::PAGE;

use super::super::parts::{Attention, Gate, QkNorm, UNBIASED};
use super::super::run::{Run, with_rows};
use super::super::weights::Linear;
use super::super::{ForwardError, Label, NodeId, NodeKind, NodeWeight, Work};
use super::block::of_norm;
use super::chain::fits;
use super::pages::layout;
use super::step::{Placed, place, rounding, values};
use super::{Step, Stop, There};

/// Attention whose weights are there.
pub(super) struct Attending<'m> {
    part: &'m Attention,
    q: Placed<'m>,
    k: Option<Placed<'m>>,
    v: Option<Placed<'m>>,
    /// Where the gate is no part of the queries.
    gate: Option<Placed<'m>>,
    output: Placed<'m>,
}

/// What all of it needs.
const OPS: [&str; 9] =
    ["rope", "store_kv", "attention", "hadamard", "sigmoid", "mul", "clamp", "scale_rows", "copy_parts"];

/// Queries, keys and values.
struct Projected {
    q: DeviceSlice,
    gate: Option<DeviceSlice>,
    /// Where the layer has its own.
    kv: Option<[DeviceSlice; 2]>,
    nodes: [NodeId<'static>; 3],
}

impl<'m> Attending<'m> {
    /// Where the device can do it and has the weights.
    pub fn find(there: There<'_>, part: &'m Attention) -> Option<Attending<'m>> {
        let (spec, projections) = (&part.spec, &part.projections);
        if part.chooses() || !there.ops.takes_attention(&part.shape(0, 1)) {
            return None;
        }
        let linears = [
            Some(&projections.q),
            projections.k.as_ref(),
            projections.v.as_ref(),
            projections.gate.as_ref(),
            Some(&part.output),
        ];
        let norms = spec.qk_norm.iter().flat_map(|norm| [Some(&norm.q), norm.k.as_ref()]);
        let norms = norms.flatten().chain(&spec.value_norm).map(of_norm);
        let rounded = linears.iter().flatten().map(|linear| rounding(linear.activation()));
        if !there.has_all(OPS.into_iter().chain(norms).chain(rounded)) {
            return None;
        }
        let [q, k, v, gate, output] = place(there.store, linears)?;
        Some(Attending { part, q: q?, k, v, gate, output: output? })
    }

    /// The pages that each sequence's rows see and are stored in; `None` where there is no room for them.
    pub fn pages<'a>(
        &self,
        run: &mut Run<'a>,
        there: There<'a>,
    ) -> Result<Option<Vec<Option<DeviceKvPages>>>, Stop> {
        let (spec, slot) = (&self.part.spec, self.part.slot);
        let seen = |first_pos: usize, tokens: usize| {
            let first = spec.window.map_or(0, |window| window.start(first_pos)) / PAGE;
            first..(first_pos + tokens).div_ceil(PAGE)
        };
        let all = run.segments.iter().map(|segment| seen(segment.first_pos, segment.tokens.len()).len());
        let room = &mut run.buffers.on_device;
        let table = room.slice(there.ops, "table", 2 * all.sum::<usize>())?;
        let (mut at, mut found) = (0, Vec::with_capacity(run.segments.len()));
        for segment in &mut run.segments {
            let (first_pos, tokens) = (segment.first_pos, segment.tokens.len());
            if tokens == 0 {
                found.push(None);
                continue;
            }
            let ty = segment.state.kept_as(slot);
            let Some(arena) = room.page_arena(there, ty)? else { return Ok(None) };
            let mut end = first_pos + tokens;
            if self.part.spec.shares.is_none() {
                let reserved = segment.state.reserve(slot, first_pos, tokens);
                reserved.map_err(|error| Stop::Pass(ForwardError::from(error)))?;
                end = first_pos;
            }
            let layout = layout([spec.kv_heads, spec.key_len, spec.value_len], ty);
            let (pages, numbers) = (seen(first_pos, tokens), segment.state.page_ids(slot));
            let places = segment.state.with_pages(slot, |host| {
                room.pages.bring(there, &arena, &layout, (host, &numbers), (pages.clone(), end))
            })?;
            let Some(places) = places else { return Ok(None) };
            let mut there_now = DeviceKvPages::new(layout, arena, table.part(at, 2 * places.len()));
            there.ops.set_pages(&mut there_now, pages.start, &places)?;
            at += 2 * places.len();
            found.push(Some(there_now));
        }
        Ok(Some(found))
    }

    /// Attention of `cur` to `out`, which may be the same: as the steps of the mixer.
    pub fn enqueue(
        &self,
        step: &mut Step<'_, '_>,
        cur: &DeviceSlice,
        pages: &[Option<DeviceKvPages>],
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let spec = &self.part.spec;
        let mut projected = self.project(step, cur)?;
        if spec.gate_in_queries {
            self.split_gate(step, &mut projected)?;
        }
        let norm = spec.qk_norm.as_ref();
        if let Some(norm) = norm.filter(|norm| !norm.after_rope) {
            self.norm(step, norm, &mut projected)?;
        }
        if let Some(rope) = spec.rope {
            self.rotate(step, rope, &mut projected)?;
        }
        if let Some(norm) = norm.filter(|norm| norm.after_rope) {
            self.norm(step, norm, &mut projected)?;
        }
        self.scale_queries(step, &mut projected)?;
        self.store(step, &mut projected, pages)?;
        let attended = step.rows("attended", spec.heads * spec.value_len)?;
        self.attend(step, &projected, pages, &attended)?;
        if let (Some(gate), Some(gates)) = (&spec.gate, &projected.gate) {
            open_gate(step, gate, gates, &attended)?;
        }
        self.project_output(step, &attended, out)
    }

    /// Takes the gates from what the queries' projection gave, each head's behind its queries.
    fn split_gate(&self, step: &mut Step<'_, '_>, to: &mut Projected) -> Result<(), Stop> {
        let spec = &self.part.spec;
        let Some(gate) = &spec.gate else { return Ok(()) };
        let (len, row) = (spec.key_len, spec.heads * spec.key_len);
        let [q, gates] = [step.rows("q", row)?, step.rows("attention_gate", row)?];
        let behind = to.q.part(len, to.q.len() - len);
        step.ops().copy_parts(&q, &to.q, len, 2 * len)?;
        step.ops().copy_parts(&gates, &behind, len, 2 * len)?;
        let inputs = [to.nodes[0]];
        let label = Label::elementwise(gate.names[0], Work::Projections, &inputs);
        step.run.gate = step.show(label, [step.run.rows, row, 1], &gates)?;
        (to.q, to.gate) = (q, Some(gates));
        Ok(())
    }

    fn scale_queries(&self, step: &mut Step<'_, '_>, to: &mut Projected) -> Result<(), Stop> {
        let spec = &self.part.spec;
        let shape = [step.run.rows, spec.heads, spec.key_len];
        if let Some(temperature) = spec.temperature {
            let factors: Vec<f32> = step.run.positions().map(|pos| temperature.at(pos)).collect();
            let there = step.rows("temperatures", 1)?;
            step.ops().write(&there, &factors)?;
            step.ops().scale_rows(&to.q, &there)?;
            let inputs = [to.nodes[0]];
            let label = Label::elementwise(spec.names.temperature, Work::Rope, &inputs);
            to.nodes[0] = step.show(label, shape, &to.q)?;
        }
        if let Some(scale) = spec.query_scale {
            step.ops().scale(&to.q, scale)?;
            let inputs = [to.nodes[0]];
            let label = Label::elementwise(spec.names.scaled_queries, Work::Rope, &inputs);
            to.nodes[0] = step.show(label, shape, &to.q)?;
        }
        Ok(())
    }

    /// The projections, with their biases.
    fn project(&self, step: &mut Step<'_, '_>, cur: &DeviceSlice) -> Result<Projected, Stop> {
        let (spec, slot, rows) = (&self.part.spec, self.part.slot, step.run.rows);
        let name = if spec.gate_in_queries { "q_and_gate" } else { "q" };
        let q = step.rows(name, spec.projected_queries())?;
        let own = spec.shares.is_none();
        let widths = [spec.kv_heads * spec.key_len, spec.kv_heads * spec.value_len];
        let kv = own.then(|| step.chain.keep(slot, widths));
        let all = [Some(&self.q), self.k.as_ref(), self.v.as_ref(), self.gate.as_ref()];
        let types = all.into_iter().flatten().map(|placed| placed.linear.activation());
        let inputs: Vec<DeviceActivations> = step.round(cur, step.run.embd, types)?;
        let mut outputs = vec![(&self.q, q.clone())];
        if let Some([k_out, v_out]) = &kv {
            outputs.extend(self.k.iter().map(|k| (k, k_out.clone())));
            outputs.extend(self.v.iter().map(|v| (v, v_out.clone())));
        }
        for (placed, out) in &outputs {
            step.project(&inputs, placed, out)?;
        }
        let mut gates = None;
        if let (Some(placed), Some(gate)) = (&self.gate, &spec.gate) {
            let (linear, out) = (placed.linear, step.rows("attention_gate", placed.linear.rows())?);
            step.project(&inputs, placed, &out)?;
            step.add_bias(linear, &out)?;
            let (weight, inputs) = (linear.matrix.described(), [step.run.cur]);
            let label = Label::product(gate.names[0], Work::Projections, weight, &inputs);
            step.run.gate = step.show(label, [rows, linear.rows(), 1], &out)?;
            gates = Some(out);
        }
        let outputs: Vec<(&Linear, DeviceSlice)> =
            outputs.into_iter().map(|(placed, out)| (placed.linear, out)).collect();
        let nodes = match self.part.projections.fused {
            true => self.show_fused(step, &outputs)?,
            false => self.show_separate(step, &outputs)?,
        };
        if let (Some([k, v]), None) = (&kv, &self.v) {
            step.ops().copy(v, k)?;
        }
        Ok(Projected { q, gate: gates, kv, nodes })
    }

    /// The nodes of projections of their own.
    fn show_separate(
        &self,
        step: &mut Step<'_, '_>,
        outputs: &[(&Linear, DeviceSlice)],
    ) -> Result<[NodeId<'static>; 3], Stop> {
        let (spec, rows, input) = (&self.part.spec, step.run.rows, [step.run.cur]);
        let queries = (spec.heads, spec.projected_queries() / spec.heads);
        let shapes = [queries, (spec.kv_heads, spec.key_len), (spec.kv_heads, spec.value_len)];
        let names =
            [(spec.names.queries, "Qcur_clamped"), ("Kcur", "Kcur_clamped"), ("Vcur", "Vcur_clamped")];
        // Values that are the keys' products give these their name.
        let of_keys = outputs.len() == 2;
        let mut nodes = [step.run.cur; 3];
        for (i, (linear, out)) in outputs.iter().enumerate() {
            let shape = [rows, shapes[i].0, shapes[i].1];
            let (name, clamped) = if of_keys && i == 1 { names[2] } else { names[i] };
            let nameless = spec.names.flat && linear.bias.is_some();
            let product = if nameless { UNBIASED[i] } else { name };
            let label = Label::product(product, Work::Projections, linear.matrix.described(), &input);
            nodes[i] = step.show(label, shape, out)?;
            if step.add_bias(linear, out)? {
                let inputs = [nodes[i]];
                let label = Label::elementwise(name, Work::Projections, &inputs);
                nodes[i] = step.show(label, shape, out)?;
            }
            if let Some(limit) = spec.clamp {
                step.ops().clamp(out, limit)?;
                let inputs = [nodes[i]];
                let label = Label::elementwise(clamped, Work::Projections, &inputs);
                nodes[i] = step.show(label, shape, out)?;
            }
        }
        if of_keys {
            nodes[2] = nodes[1];
        }
        Ok(nodes)
    }

    /// Those of one tensor, which have queries, keys and values side by side.
    fn show_fused(
        &self,
        step: &mut Step<'_, '_>,
        outputs: &[(&Linear, DeviceSlice)],
    ) -> Result<[NodeId<'static>; 3], Stop> {
        let (names, rows, input) = (&self.part.spec.names, step.run.rows, [step.run.cur]);
        let weight = outputs.iter().map(|(linear, _)| linear.matrix.described()).reduce(NodeWeight::and);
        let shape = [rows, outputs.iter().map(|(linear, _)| linear.rows()).sum(), 1];
        let parts: Vec<DeviceSlice> = outputs.iter().map(|(_, out)| out.clone()).collect();
        let label = Label { weight, ..Label::new("wqkv", NodeKind::Product, Work::Projections, &input) };
        let mut node = step.show_side_by_side(label, shape, &parts)?;
        let mut biased = false;
        for (linear, out) in outputs {
            biased |= step.add_bias(linear, out)?;
        }
        if biased {
            let inputs = [node];
            let label = Label::elementwise("wqkv_b", Work::Projections, &inputs);
            node = step.show_side_by_side(label, shape, &parts)?;
        }
        if let Some(limit) = self.part.spec.clamp {
            parts.iter().try_for_each(|part| step.ops().clamp(part, limit))?;
            let inputs = [node];
            let label = Label::elementwise("wqkv_clamped", Work::Projections, &inputs);
            node = step.show_side_by_side(label, shape, &parts)?;
        }
        let mut nodes = [node; 3];
        if names.flat {
            for (i, (linear, out)) in outputs.iter().enumerate() {
                let inputs = [node];
                let name = [names.queries, "Kcur", "Vcur"][i];
                let label = Label::elementwise(name, Work::Projections, &inputs);
                nodes[i] = step.show(label, [rows, linear.rows(), 1], out)?;
            }
        }
        Ok(nodes)
    }

    fn norm(&self, step: &mut Step<'_, '_>, norm: &QkNorm, to: &mut Projected) -> Result<(), Stop> {
        let (spec, rows) = (&self.part.spec, step.run.rows);
        step.norm(&norm.q, &to.q)?;
        let inputs = [to.nodes[0]];
        to.nodes[0] = step.show(norm.q.label(&inputs), [rows, spec.heads, spec.key_len], &to.q)?;
        if let (Some(norm), Some([k, _])) = (&norm.k, &to.kv) {
            step.norm(norm, k)?;
            let inputs = [to.nodes[1]];
            to.nodes[1] = step.show(norm.label(&inputs), [rows, spec.kv_heads, spec.key_len], k)?;
        }
        Ok(())
    }

    fn rotate(&self, step: &mut Step<'_, '_>, rope: usize, to: &mut Projected) -> Result<(), Stop> {
        let (spec, rows, ops) = (&self.part.spec, step.run.rows, step.ops());
        let (kind, table) = (step.run.rope_kinds[rope], rope_table(step, rope)?);
        let (q_name, k_name) = spec.names.rotated;
        ops.rope(kind, &table, &to.q, spec.heads, spec.key_len)?;
        let inputs = [to.nodes[0]];
        let label = Label::new(q_name, NodeKind::Rope, Work::Rope, &inputs);
        to.nodes[0] = step.show(label, [rows, spec.heads, spec.key_len], &to.q)?;
        if let Some([k, _]) = &to.kv {
            ops.rope(kind, &table, k, spec.kv_heads, spec.key_len)?;
            let inputs = [to.nodes[1]];
            let label = Label::new(k_name, NodeKind::Rope, Work::Rope, &inputs);
            to.nodes[1] = step.show(label, [rows, spec.kv_heads, spec.key_len], k)?;
        }
        Ok(())
    }

    /// Writes keys and values to the copies of every sequence's pages.
    fn store(
        &self,
        step: &mut Step<'_, '_>,
        to: &mut Projected,
        pages: &[Option<DeviceKvPages>],
    ) -> Result<(), Stop> {
        let (spec, slot) = (&self.part.spec, self.part.slot);
        let Some([k, v]) = &to.kv else {
            let [k, v] = step.run.kept[slot];
            to.nodes = [to.nodes[0], k, v];
            return Ok(());
        };
        if let Some(norm) = &spec.value_norm {
            step.norm(norm, v)?;
            let (inputs, shape) = ([to.nodes[2]], [step.run.rows, spec.kv_heads, spec.value_len]);
            to.nodes[2] = step.show(norm.label(&inputs), shape, v)?;
        }
        if step.run.watch.active() {
            let [keys, values] = [values(step.ops(), k)?, values(step.ops(), v)?];
            if !fits(step.run, slot, [&keys, &values]) {
                return Err(Stop::Wrong);
            }
        }
        let ops = step.ops();
        let (k_row, v_row) = (spec.kv_heads * spec.key_len, spec.kv_heads * spec.value_len);
        let copies = &mut step.run.buffers.on_device.pages;
        for ((rows, segment), pages) in with_rows(&step.run.segments).zip(pages) {
            let Some(pages) = pages else { continue };
            let part = |x: &DeviceSlice, row: usize| x.part(rows.start * row, rows.len() * row);
            let (k, v) = (part(k, k_row), part(v, v_row));
            ops.store_kv(pages, segment.first_pos, &k, Some(&v))?;
            let numbers = segment.state.page_ids(slot);
            let first = segment.state.with_pages(slot, |pages| pages.first_page);
            copies.stored(&numbers, first, segment.first_pos + rows.len());
        }
        step.run.kept.resize(step.run.kept.len().max(slot + 1), [to.nodes[0]; 2]);
        step.run.kept[slot] = [to.nodes[1], to.nodes[2]];
        Ok(())
    }

    /// Attention of the queries over all positions that they see.
    fn attend(
        &self,
        step: &mut Step<'_, '_>,
        from: &Projected,
        pages: &[Option<DeviceKvPages>],
        attended: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (spec, ops) = (&self.part.spec, step.ops());
        let (q_row, out_row) = (spec.heads * spec.key_len, spec.heads * spec.value_len);
        let sinks = self.part.sinks.as_ref().map(|sinks| step.there.constant(sinks)).transpose()?;
        for ((rows, segment), pages) in with_rows(&step.run.segments).zip(pages) {
            let Some(pages) = pages else { continue };
            let part = |x: &DeviceSlice, row: usize| x.part(rows.start * row, rows.len() * row);
            let shape = self.part.shape(segment.first_pos, rows.len());
            let (q, out) = (part(&from.q, q_row), part(attended, out_row));
            ops.attention(&shape, &q, pages, sinks.as_ref(), &out)?;
        }
        let kind = if sinks.is_some() { NodeKind::SinkAttention } else { NodeKind::Attention };
        let label = Label::new(spec.names.attended, kind, Work::Attention, &from.nodes);
        step.run.attended = step.show(label, [step.run.rows, out_row, 1], attended)?;
        // Values were rotated before they were kept; ggml names it before.
        let rotation = pages.iter().flatten().next().map_or(1, |pages| pages.layout().rotations()[1]);
        if rotation > 1 {
            ops.hadamard(attended, rotation)?;
        }
        Ok(())
    }

    /// The output projection.
    fn project_output(
        &self,
        step: &mut Step<'_, '_>,
        attended: &DeviceSlice,
        out: &DeviceSlice,
    ) -> Result<(), Stop> {
        let (spec, linear) = (&self.part.spec, self.output.linear);
        let shape = [step.run.rows, step.run.embd, 1];
        let rounded = step.round(attended, linear.matrix.cols, [linear.activation()])?;
        step.project(&rounded, &self.output, out)?;
        // ggml names the sum with the bias alone.
        step.add_bias(linear, out)?;
        let inputs = [step.run.attended];
        let weight = linear.matrix.described();
        let label = Label::product(spec.names.output, Work::AttentionOutput, weight, &inputs);
        step.run.cur = step.show(label, shape, out)?;
        if let Some(scale) = spec.output_scale {
            step.ops().scale(out, scale)?;
            let inputs = [step.run.cur];
            let label = Label::elementwise(spec.names.scaled, Work::AttentionOutput, &inputs);
            step.run.cur = step.show(label, shape, out)?;
        }
        Ok(())
    }
}

/// Multiplies what attention gave by the sigmoid of its gate.
fn open_gate(
    step: &mut Step<'_, '_>,
    gate: &Gate,
    gates: &DeviceSlice,
    attended: &DeviceSlice,
) -> Result<(), Stop> {
    let shape = |x: &DeviceSlice| [step.run.rows, x.len() / step.run.rows, 1];
    let [gate_shape, shape] = [shape(gates), shape(attended)];
    step.ops().sigmoid(gates)?;
    let inputs = [step.run.gate];
    let label = Label::new(gate.names[1], NodeKind::Sigmoid, Work::AttentionOutput, &inputs);
    let sigmoid = step.show(label, gate_shape, gates)?;
    match gate.per_head {
        true => step.ops().scale_rows(attended, gates)?,
        false => step.ops().mul(attended, gates)?,
    }
    let inputs = [step.run.attended, sigmoid];
    let label = Label::elementwise(gate.names[2], Work::AttentionOutput, &inputs);
    step.run.attended = step.show(label, shape, attended)?;
    Ok(())
}

/// A table of rotations, which a chain brings to the device once.
fn rope_table(step: &mut Step<'_, '_>, rope: usize) -> Result<DeviceRopeTable, Stop> {
    let known = &mut step.chain.ropes;
    known.resize(known.len().max(rope + 1), None);
    if let Some(table) = &known[rope] {
        return Ok(table.clone());
    }
    let (ops, buffers) = (step.there.ops, &mut *step.run.buffers);
    let table = &buffers.rope[rope];
    let angles = DeviceRopeTable::values(table);
    let angles = buffers.on_device.numbered_slice(ops, ("rope", rope), angles)?;
    let table = ops.write_rope(table, angles)?;
    step.chain.ropes[rope] = Some(table.clone());
    Ok(table)
}
