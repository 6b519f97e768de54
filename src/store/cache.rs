//! The cache of experts: which of them keep a slot. Pure policy; it knows slots by number, not bytes.
//!
//! An expert is worth its slot by how soon it is expected to be read again: the layers until its own comes
//! round, and the passes until a token wants it, by the share of recent passes that did and by how often,
//! in this run, a token takes the experts of the one before. Where all experts are wanted equally often
//! this keeps a steady set (as good as any, where strict least-recently-used drops each just before its
//! turn); where some are wanted more often or in a row, those.
//!
//! The victim is found without looking at every slot. The share of recent passes that read an expert falls
//! by the same factor for all, so that its logarithm plus the time of the last read is a number that stays
//! the same between reads: the expert's *worth*. Of the experts of a layer that were all read, or all not
//! read, at the layer's last turn, the one of the least worth is needed last, at any time. So two looks a
//! layer are enough.
//!
//! Worths stand for all experts of the model, whether they have a slot or not: an expert that was evicted
//! comes back with what is known of it. They are all the memory that the policy takes beside the slots.

use std::collections::{BTreeSet, HashMap};

/// An expert that may be cached.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Members of a class have slots of the same size.
    pub class: usize,
    /// The layer that reads it.
    pub layer: usize,
    /// The share of passes over one token that are expected to read it.
    pub share: f32,
}

/// Where a pass is.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Passes so far.
    pub pass: u64,
    pub layer: usize,
}

/// Whether a member may lose its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Free,
    /// Announced for this pass: it goes only where no free member is left.
    Announced,
    /// Being read or in use: it stays. Members without a slot are busy, too.
    Busy,
}

/// Passes in which the share of a read falls to half. Of 12 to 192, those of 24 and 48 hit most over steady
/// and changing topics; a topic of a hundred passes loses up to 3 points of the hits with 192.
const HALF_LIFE: f64 = 24.0;
/// No member is taken to be rarer than this.
const LEAST_SHARE: f64 = 1e-4;
/// How much later a member must be needed to give way where nobody has to come.
const SOONER: f64 = 1.25;
/// What a pass adds to the worth of a read: worths are whole numbers, so that their order does not depend
/// on rounding.
const PASS_WORTH: f64 = 65536.0;

/// The worth of a member that this share of recent passes read.
fn worth(share: f64, pass: u64) -> i64 {
    (share.max(LEAST_SHARE).log2() * HALF_LIFE * PASS_WORTH).round() as i64 + pass as i64 * PASS_WORTH as i64
}

/// The share of recent passes that read a member.
fn share(worth: i64, pass: u64) -> f64 {
    ((worth - pass as i64 * PASS_WORTH as i64) as f64 / (HALF_LIFE * PASS_WORTH)).exp2()
}

/// The weight of the newest pass in an average over recent passes.
fn rate() -> f64 {
    1.0 - (-1.0 / HALF_LIFE).exp2()
}

#[derive(Clone, Copy, Debug)]
struct Use {
    worth: i64,
    /// The last pass that read it.
    last: u64,
}

/// How often passes read again what the pass before read, and what it did not: shares, learned.
#[derive(Debug)]
struct Repeats {
    again: f64,
    anew: f64,
    /// Members read by the pass under way and the one before, and those of the former that are of the
    /// latter as well.
    pass: u64,
    now: usize,
    before: usize,
    repeated: usize,
}

impl Repeats {
    fn new(share: f64) -> Repeats {
        Repeats { again: share, anew: share, pass: 0, now: 0, before: 0, repeated: 0 }
    }

    /// Notes a read by a pass of a member that was read last by another.
    fn note(&mut self, pass: u64, last: u64, members: usize) {
        if self.pass != pass {
            self.learn(members);
            self.before = if self.pass + 1 == pass { self.now } else { 0 };
            (self.pass, self.now, self.repeated) = (pass, 0, 0);
        }
        self.now += 1;
        self.repeated += usize::from(last != 0 && last + 1 == pass);
    }

    fn learn(&mut self, members: usize) {
        if self.before == 0 || self.before == members {
            return;
        }
        self.again += rate() * (self.repeated as f64 / self.before as f64 - self.again);
        let anew = (self.now - self.repeated) as f64 / (members - self.before) as f64;
        self.anew += rate() * (anew - self.anew);
    }
}

/// When members are expected to be read again, as seen from one place of a pass.
#[derive(Clone, Copy, Debug)]
struct Outlook {
    now: Now,
    layers: usize,
    /// How much more often than on average a member is read that was read at its layer's last turn, and one
    /// that was not.
    recent: f64,
    earlier: f64,
}

impl Outlook {
    /// Passes until a member is expected to be read again.
    fn until_next_use(&self, layer: usize, worth: i64, recent: bool) -> f64 {
        // The layer under way is behind: what it needs is not to be had here.
        let ahead = (layer + self.layers - self.now.layer % self.layers - 1) % self.layers + 1;
        let factor = if recent { self.recent } else { self.earlier };
        let share = (share(worth, self.now.pass) * factor).clamp(LEAST_SHARE, 1.0);
        ahead as f64 / self.layers as f64 + 1.0 / share - 1.0
    }
}

/// A member in the order of worth.
type Ranked = (i64, usize);

/// Members of a class and layer of the same standing, by worth.
#[derive(Debug, Default)]
struct Order {
    /// The layer's last turn, and those that it read.
    turn: u64,
    recent: BTreeSet<Ranked>,
    earlier: BTreeSet<Ranked>,
}

impl Order {
    /// Goes on to the layer's last turn.
    fn turn_to(&mut self, turn: u64) {
        if self.turn != turn {
            self.turn = turn;
            self.earlier.append(&mut self.recent);
        }
    }
}

/// The members of a class and layer that may lose their slots: free ones and announced ones.
#[derive(Debug)]
struct Group {
    layer: usize,
    orders: [Order; 2],
}

#[derive(Debug)]
struct Class {
    free_slots: Vec<usize>,
    groups: Vec<usize>,
}

/// Slots and who has them.
#[derive(Debug)]
pub struct Cache {
    members: Vec<Member>,
    uses: Vec<Use>,
    standings: Vec<Standing>,
    /// The slot of each member, in its class.
    slots: Vec<Option<usize>>,
    /// The group of each member.
    group_of: Vec<usize>,
    groups: Vec<Group>,
    classes: Vec<Class>,
    /// The last pass that read any member of a layer, by layer.
    turns: Vec<u64>,
    repeats: Repeats,
    /// The share of all members that a pass over one token reads.
    average: f64,
    /// Whether each choice is compared with that of a scan of all slots.
    #[cfg(test)]
    pub checked: bool,
}

impl Cache {
    /// An empty cache with so many slots in each class.
    pub fn new(members: Vec<Member>, slots: &[usize]) -> Cache {
        let average = members.iter().map(|m| f64::from(m.share)).sum::<f64>() / members.len().max(1) as f64;
        let free = |&n: &usize| Class { free_slots: (0..n).rev().collect(), groups: Vec::new() };
        let mut classes: Vec<Class> = slots.iter().map(free).collect();
        let (mut groups, mut known) = (Vec::new(), HashMap::new());
        let mut group_of = |member: &Member| {
            *known.entry((member.class, member.layer)).or_insert_with(|| {
                classes[member.class].groups.push(groups.len());
                groups.push(Group { layer: member.layer, orders: Default::default() });
                groups.len() - 1
            })
        };
        Cache {
            group_of: members.iter().map(&mut group_of).collect(),
            groups,
            classes,
            repeats: Repeats::new(average),
            average,
            uses: members.iter().map(Cache::unread).collect(),
            standings: vec![Standing::Busy; members.len()],
            slots: vec![None; members.len()],
            turns: vec![0; members.iter().map(|m| m.layer + 1).max().unwrap_or(1)],
            members,
            #[cfg(test)]
            checked: false,
        }
    }

    /// What is expected of a member that no pass has read.
    fn unread(member: &Member) -> Use {
        Use { worth: worth(f64::from(member.share), 0), last: 0 }
    }

    /// Forgets what passes have read; what is in the slots stays there.
    pub fn forget_uses(&mut self) {
        (0..self.members.len()).for_each(|member| self.unrank(member));
        self.repeats = Repeats::new(self.average);
        self.uses = self.members.iter().map(Cache::unread).collect();
        self.turns.fill(0);
        (0..self.members.len()).for_each(|member| self.rank(member));
    }

    /// The slot of a member, in its class.
    pub fn slot(&self, member: usize) -> Option<usize> {
        self.slots[member]
    }

    /// Notes that a pass reads a member.
    pub fn touch(&mut self, member: usize, pass: u64) {
        let Use { worth: before, last } = self.uses[member];
        if last == pass {
            return;
        }
        self.unrank(member);
        self.repeats.note(pass, last, self.members.len());
        let share = share(before, pass);
        self.uses[member] = Use { worth: worth(share + rate() * (1.0 - share), pass), last: pass };
        self.turns[self.members[member].layer] = pass;
        self.rank(member);
    }

    /// Says whether a member that has a slot may lose it.
    pub fn stand(&mut self, member: usize, standing: Standing) {
        if self.slots[member].is_some() && self.standings[member] != standing {
            self.unrank(member);
            self.standings[member] = standing;
            self.rank(member);
        }
    }

    /// Gives a member a slot and makes it busy: a free slot, or that of the member that is needed last of
    /// those of a standing, which is returned as well. `None` where there is neither.
    pub fn place(&mut self, member: usize, now: Now, gives_way: Standing) -> Option<(usize, Option<usize>)> {
        let class = self.members[member].class;
        let (slot, evicted) = match self.classes[class].free_slots.pop() {
            Some(slot) => (slot, None),
            None => {
                let victim = self.victim(class, now, gives_way);
                #[cfg(test)]
                assert!(!self.checked || victim == self.scan(class, now, gives_way));
                let victim = victim?;
                (self.take_slot(victim)?, Some(victim))
            }
        };
        self.slots[member] = Some(slot);
        Some((slot, evicted))
    }

    /// Gives a member a free slot of its class, where there is one, and makes it busy.
    pub fn place_in_free(&mut self, member: usize) -> bool {
        let slot = self.classes[self.members[member].class].free_slots.pop();
        self.slots[member] = slot.or(self.slots[member]);
        slot.is_some()
    }

    /// The same; without a free slot, that of the free member that is needed last, where that is needed later
    /// by far: it is returned as well.
    pub fn place_if_sooner(&mut self, member: usize, now: Now) -> Option<Option<usize>> {
        if self.place_in_free(member) {
            return Some(None);
        }
        let victim = self.victim(self.members[member].class, now, Standing::Free)?;
        let outlook = self.outlook(now);
        let until = |member: usize| {
            let (layer, read) = (self.members[member].layer, self.uses[member]);
            outlook.until_next_use(layer, read.worth, read.last == self.turns[layer])
        };
        if until(member) * SOONER >= until(victim) {
            return None;
        }
        self.slots[member] = self.take_slot(victim);
        Some(Some(victim))
    }

    /// Has no more slots than members have now.
    pub fn drop_free_slots(&mut self) {
        self.classes.iter_mut().for_each(|class| class.free_slots.clear());
    }

    /// Takes a member's slot away.
    pub fn remove(&mut self, member: usize) {
        if let Some(slot) = self.take_slot(member) {
            self.classes[self.members[member].class].free_slots.push(slot);
        }
    }

    fn take_slot(&mut self, member: usize) -> Option<usize> {
        self.unrank(member);
        self.standings[member] = Standing::Busy;
        self.slots[member].take()
    }

    fn outlook(&self, now: Now) -> Outlook {
        let (recent, earlier) = (self.repeats.again / self.average, self.repeats.anew / self.average);
        Outlook { now, layers: self.turns.len(), recent, earlier }
    }

    /// The member of a class and standing that is needed last; of several, the one of the least worth, and
    /// of the lowest number.
    fn victim(&mut self, class: usize, now: Now, standing: Standing) -> Option<usize> {
        let outlook = self.outlook(now);
        let mut last: Option<(f64, Ranked)> = None;
        for &group in &self.classes[class].groups {
            let Group { layer, orders } = &mut self.groups[group];
            let order = &mut orders[order_of(standing)?];
            order.turn_to(self.turns[*layer]);
            for (ranks, recent) in [(&order.recent, true), (&order.earlier, false)] {
                let Some(&ranked) = ranks.first() else { continue };
                let until = outlook.until_next_use(*layer, ranked.0, recent);
                if last.is_none_or(|(most, least)| until.total_cmp(&most).then(least.cmp(&ranked)).is_gt()) {
                    last = Some((until, ranked));
                }
            }
        }
        last.map(|(_, (_, member))| member)
    }

    /// Where a member that may lose its slot stands among others.
    fn ranks(&mut self, member: usize) -> Option<&mut BTreeSet<Ranked>> {
        let turn = self.turns[self.members[member].layer];
        let order = &mut self.groups[self.group_of[member]].orders[order_of(self.standings[member])?];
        order.turn_to(turn);
        Some(if self.uses[member].last == turn { &mut order.recent } else { &mut order.earlier })
    }

    fn rank(&mut self, member: usize) {
        let ranked = (self.uses[member].worth, member);
        if let Some(ranks) = self.ranks(member) {
            ranks.insert(ranked);
        }
    }

    fn unrank(&mut self, member: usize) {
        let ranked = (self.uses[member].worth, member);
        if let Some(ranks) = self.ranks(member) {
            ranks.remove(&ranked);
        }
    }
}

/// Which of a group's orders is that of a standing.
fn order_of(standing: Standing) -> Option<usize> {
    match standing {
        Standing::Free => Some(0),
        Standing::Announced => Some(1),
        Standing::Busy => None,
    }
}

#[cfg(test)]
mod tests;
