//! That kept texts go on as if they had been asked for whole, whoever else runs and however a request ends;
//! and that the memory that they hold is nobody else's.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::*;

/// Of the smaller vocabulary of both models.
fn prompt(of: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| 3 + (of * 17 + i * i) % 100).collect()
}

fn lend(keeper: &Arc<Keeper>) -> Loan {
    match keeper.ask().within(Duration::ZERO) {
        Poll::Ready(Some(loan)) => loan,
        other => panic!("{other:?}"),
    }
}

/// Has a text read tokens and go on with so many.
fn go_on(keeper: &Arc<Keeper>, read: &[u32], max_tokens: usize) -> (Request, Listener) {
    let loan = lend(keeper);
    let (mut request, told) = plain([&loan.tokens()[..], read].concat(), max_tokens);
    request.text = Some(loan);
    (request, told)
}

/// The same, done.
fn went_on(scheduler: &mut Scheduler<'_>, keeper: &Arc<Keeper>, read: &[u32], max_tokens: usize) -> Vec<u32> {
    let (request, told) = go_on(keeper, read, max_tokens);
    scheduler.submit(request);
    run(scheduler);
    assert_eq!(why(&told), "MaxTokens");
    std::mem::take(&mut told.lock().unwrap().ids)
}

/// A text that is kept, of these tokens.
fn kept(scheduler: &mut Scheduler<'_>, tokens: &[u32]) -> Arc<Keeper> {
    let keeper = Keeper::new(scheduler.new_text());
    went_on(scheduler, &keeper, tokens, 0);
    keeper
}

fn why(told: &Listener) -> String {
    told.lock().unwrap().end.as_ref().expect("it is over").0.clone()
}

/// What follows a prompt.
fn whole(model: &Model, prompt: Vec<u32>, tokens: usize) -> Vec<u32> {
    let mut scheduler = scheduler(model, LIMITS);
    let (request, told) = plain(prompt, tokens);
    scheduler.submit(request);
    run(&mut scheduler);
    std::mem::take(&mut told.lock().unwrap().ids)
}

#[test]
fn a_text_goes_on_as_if_it_were_asked_for_whole() {
    for name in MODELS {
        let model = model(name);
        let wanted = whole(&model, prompt(1, 200), 20);
        let mut scheduler = scheduler(&model, LIMITS);
        let text = kept(&mut scheduler, &prompt(1, 200)[..150]);
        assert_eq!(lend(&text).sequence().past(), 150);
        went_on(&mut scheduler, &text, &prompt(1, 200)[150..], 0);
        let fork = Keeper::new(lend(&text).fork());
        let mut made = went_on(&mut scheduler, &text, &[], 7);
        assert_eq!(lend(&text).rest(), &made[6..], "the last token drawn has not been run");
        assert_eq!(lend(&text).tokens(), [prompt(1, 200), made.clone()].concat());
        made.extend(went_on(&mut scheduler, &text, &[], 13));
        assert_eq!(made, wanted, "{name}");
        // Back, and another way; a fork has not gone along.
        lend(&text).rewind(140);
        assert_eq!(lend(&text).tokens(), prompt(1, 200)[..140]);
        let other = [&prompt(1, 200)[..140], &prompt(2, 30)].concat();
        assert_eq!(went_on(&mut scheduler, &text, &prompt(2, 30), 5), whole(&model, other, 5), "{name}");
        assert_eq!(went_on(&mut scheduler, &fork, &[], 20), wanted, "{name}");
        lend(&fork).rewind(0);
        assert!(lend(&fork).is_empty());
    }
}

#[test]
fn texts_share_passes_with_each_other_and_with_requests() {
    for name in MODELS {
        let model = model(name);
        let wanted: Vec<Vec<u32>> = (0..4).map(|n| whole(&model, prompt(n, 40), 12)).collect();
        let mut scheduler = scheduler(&model, LIMITS);
        let texts: Vec<Arc<Keeper>> = (0..3).map(|n| kept(&mut scheduler, &prompt(n, 40))).collect();
        let before = scheduler.stats();
        let mut told: Vec<Listener> = Vec::new();
        for text in &texts {
            let (request, listener) = go_on(text, &[], 12);
            scheduler.submit(request);
            told.push(listener);
        }
        let (request, listener) = plain(prompt(3, 40), 12);
        scheduler.submit(request);
        told.push(listener);
        scheduler.step();
        assert_eq!(scheduler.running(), 4);
        run(&mut scheduler);
        let made: Vec<Vec<u32>> = told.iter().map(|told| told.lock().unwrap().ids.clone()).collect();
        assert_eq!(made, wanted, "{name}");
        let after = scheduler.stats();
        assert_eq!(after.made - before.made, 4 * 12);
        // Two for the prompt, and one for each of its tokens but the last.
        assert_eq!(after.passes - before.passes, 2 + 11, "all four in each pass");
    }
}

/// Texts have places of their own: neither they nor requests wait for the others to end.
#[test]
fn texts_do_not_wait_behind_requests() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, SchedulerLimits { sequences: 1, ..LIMITS });
    let (request, long) = plain(prompt(1, 5), 100);
    scheduler.submit(request);
    let (request, _) = plain(prompt(2, 5), 100);
    scheduler.submit(request);
    scheduler.step();
    let texts = [0, 1].map(|_| Keeper::new(scheduler.new_text()));
    let told = texts.each_ref().map(|text| {
        let (request, told) = go_on(text, &prompt(3, 10), 3);
        scheduler.submit(request);
        told
    });
    run_until(&mut scheduler, || told.iter().all(|told| told.lock().unwrap().end.is_some()));
    assert_eq!(told[0].lock().unwrap().ids.len(), 3);
    assert!(long.lock().unwrap().end.is_none());
    scheduler.stop();
}

/// Wants so many tokens.
struct Reader(Listener, Arc<AtomicUsize>);

impl Sink for Reader {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        self.0.send(event)
    }

    fn wants_token(&mut self) -> bool {
        self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |wanted| wanted.checked_sub(1)).is_ok()
    }

    fn is_gone(&self) -> bool {
        false
    }
}

#[test]
fn tokens_that_nobody_asks_for_are_not_drawn() {
    for name in MODELS {
        let model = model(name);
        let wanted = whole(&model, prompt(1, 60), 9);
        let mut scheduler = scheduler(&model, SchedulerLimits { sequences: 1, ..LIMITS });
        let text = kept(&mut scheduler, &prompt(1, 60));
        let mut made = Vec::new();
        for ask in [1, 3, 1, 4] {
            let (mut request, told) = go_on(&text, &[], 100);
            request.sink = Box::new(Reader(Arc::clone(&told), Arc::new(AtomicUsize::new(ask))));
            scheduler.submit(request);
            run(&mut scheduler);
            assert_eq!((why(&told).as_str(), scheduler.running()), ("Left", 0));
            made.extend_from_slice(&told.lock().unwrap().ids);
            assert_eq!(lend(&text).tokens(), [prompt(1, 60), made.clone()].concat());
            assert!(lend(&text).rest().is_empty(), "the last token has been run meanwhile");
        }
        assert_eq!(made, wanted, "{name}");
    }
}

#[test]
fn a_text_is_back_however_its_request_ends() {
    for name in MODELS {
        let model = model(name);
        let wanted = whole(&model, prompt(1, 40), 9);
        let mut scheduler = scheduler(&model, LIMITS);
        let text = kept(&mut scheduler, &prompt(1, 40));
        let goes_on = |scheduler: &mut Scheduler<'_>, from: usize, after: &str| {
            let made = went_on(scheduler, &text, &[], 2);
            assert_eq!(made, wanted[from..from + 2], "{name}, after {after}");
        };
        // Its reader leaves at a token.
        let (request, told) = go_on(&text, &[], 100);
        told.lock().unwrap().leaves = Some(3);
        scheduler.submit(request);
        run(&mut scheduler);
        assert_eq!(lend(&text).tokens(), [&prompt(1, 40)[..], &wanted[..3]].concat());
        goes_on(&mut scheduler, 3, "a reader that leaves");
        // It fails: a token that there is not.
        let there = lend(&text).tokens();
        let (request, told) = go_on(&text, &[model.spec().vocab as u32], 0);
        scheduler.submit(request);
        run(&mut scheduler);
        assert!(why(&told).contains("outside the vocabulary"));
        assert_eq!(lend(&text).tokens(), there);
        goes_on(&mut scheduler, 5, "a failure");
        // The scheduler is stopped, or goes.
        let other = kept(&mut scheduler, &prompt(2, 5));
        let (request, _) = go_on(&text, &[], 100);
        scheduler.submit(request);
        scheduler.step();
        let (request, _) = go_on(&other, &prompt(2, 5), 100);
        scheduler.submit(request);
        scheduler.stop();
        assert_eq!(lend(&other).tokens(), prompt(2, 5));
        assert_eq!(lend(&text).tokens(), [&prompt(1, 40)[..], &wanted[..8]].concat());
        let (request, _) = go_on(&text, &[], 100);
        scheduler.submit(request);
        drop(scheduler);
        // Another one takes it on.
        let mut scheduler = super::scheduler(&model, LIMITS);
        assert_eq!(went_on(&mut scheduler, &text, &[], 1), wanted[8..], "{name}, elsewhere");
        assert_eq!(scheduler.kept_bytes(), lend(&text).sequence().held_bytes());
    }
}

#[test]
fn of_tokens_that_are_read_those_are_the_texts_that_were_run() {
    for name in MODELS {
        let model = model(name);
        let mut scheduler = scheduler(&model, LIMITS);
        let text = kept(&mut scheduler, &prompt(1, 10));
        let (request, told) = go_on(&text, &prompt(2, 300), 0);
        scheduler.submit(request);
        scheduler.step();
        told.lock().unwrap().gone = true;
        scheduler.step();
        assert_eq!(why(&told), "Left");
        let read = [&prompt(1, 10)[..], &prompt(2, 300)[..LIMITS.chunk]].concat();
        assert_eq!(lend(&text).tokens(), read);
        assert_eq!(went_on(&mut scheduler, &text, &[], 3), whole(&model, read, 3), "{name}");
    }
}

/// Whoever is told breaks in the midst of a pass's work.
struct Breaks;

impl Sink for Breaks {
    fn send(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Token(_) => panic!("broken on purpose"),
            _ => ControlFlow::Continue(()),
        }
    }

    fn is_gone(&self) -> bool {
        false
    }
}

#[test]
fn a_text_survives_a_bug() {
    for name in MODELS {
        let model = model(name);
        let mut first = scheduler(&model, LIMITS);
        let text = kept(&mut first, &prompt(1, 40));
        let (mut request, _) = go_on(&text, &[], 100);
        request.sink = Box::new(Breaks);
        first.submit(request);
        let run_all = std::panic::AssertUnwindSafe(move || run(&mut { first }));
        std::panic::catch_unwind(run_all).expect_err("it breaks");
        let mut second = scheduler(&model, LIMITS);
        assert_eq!(lend(&text).tokens()[..40], prompt(1, 40));
        assert_eq!(lend(&text).sequence().past(), 0, "what is known of it may be wrong");
        lend(&text).rewind(40);
        assert_eq!(went_on(&mut second, &text, &[], 3), whole(&model, prompt(1, 40), 3), "{name}");
    }
}

/// A scheduler whose sequences may take so many pages.
fn small(model: &Model, pages: u64) -> Scheduler<'_> {
    let mut scheduler = scheduler(model, LIMITS);
    scheduler.limits.sequence_bytes = pages * scheduler.sequence_bytes(PAGE);
    scheduler
}

fn refused(scheduler: &mut Scheduler<'_>, (request, told): (Request, Listener)) {
    scheduler.submit(request);
    run(scheduler);
    assert!(why(&told).contains("there is no room"), "{}", why(&told));
}

#[test]
fn what_texts_hold_is_nobody_elses() {
    let model = model(MODELS[0]);
    let mut scheduler = small(&model, 4);
    let page = scheduler.sequence_bytes(PAGE);
    // Something that is remembered.
    let (request, _) = plain(prompt(7, 200), 2);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!((scheduler.held_bytes(), scheduler.kept_bytes()), (2 * page, 0));
    let text = kept(&mut scheduler, &prompt(1, 200));
    assert_eq!((scheduler.held_bytes(), scheduler.kept_bytes()), (4 * page, 2 * page));
    // A fork takes nothing until it goes its own way: then its last page is its own. What is remembered goes.
    let fork = Keeper::new(lend(&text).fork());
    assert_eq!(scheduler.kept_bytes(), 2 * page);
    went_on(&mut scheduler, &fork, &[5], 0);
    assert_eq!((scheduler.held_bytes(), scheduler.kept_bytes()), (3 * page, 3 * page));
    // Requests have what is left.
    refused(&mut scheduler, plain(prompt(2, 130), 2));
    let (request, told) = plain(prompt(2, 100), 28);
    scheduler.submit(request);
    run(&mut scheduler);
    assert_eq!((why(&told).as_str(), usage(&told).made), ("MaxTokens", 28));
    // One that may need more goes as far as there is room.
    let (request, told) = plain(prompt(3, 100), 300);
    scheduler.submit(request);
    while scheduler.step() {
        assert!(scheduler.held_bytes() <= 4 * page);
    }
    assert!(why(&told).contains("there is no room"), "{}", why(&told));
    assert_eq!(usage(&told).made, PAGE + 1 - 100);
    // The text takes the last page, and its fork has to do without.
    went_on(&mut scheduler, &text, &prompt(4, 150), 0);
    assert_eq!((scheduler.held_bytes(), scheduler.kept_bytes()), (4 * page, 4 * page));
    refused(&mut scheduler, go_on(&fork, &prompt(5, 100), 0));
    assert_eq!(lend(&fork).len(), 201);
    let made = went_on(&mut scheduler, &fork, &[], 3);
    assert_eq!(made, whole(&model, [prompt(1, 200), vec![5]].concat(), 3), "within its pages it goes on");
    refused(&mut scheduler, plain(prompt(2, 1), 2));
    // What is dropped is free.
    drop(text);
    assert_eq!(scheduler.kept_bytes(), 2 * page);
    went_on(&mut scheduler, &fork, &prompt(5, 100), 0);
    fork.give_up();
    assert_eq!((scheduler.held_bytes(), scheduler.held_pages()), (0, 0));
}

#[test]
fn texts_wait_for_room_that_requests_have() {
    let model = model(MODELS[1]);
    let mut scheduler = scheduler(&model, LIMITS);
    scheduler.limits.sequence_bytes = scheduler.sequence_bytes(400);
    let (request, first) = plain(prompt(1, 10), 390);
    first.lock().unwrap().leaves = Some(5);
    scheduler.submit(request);
    scheduler.step();
    let text = Keeper::new(scheduler.new_text());
    let (request, told) = go_on(&text, &prompt(2, 200), 3);
    scheduler.submit(request);
    scheduler.step();
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
    run_until(&mut scheduler, || first.lock().unwrap().end.is_some());
    run(&mut scheduler);
    assert_eq!(told.lock().unwrap().ids, whole(&model, prompt(2, 200), 3));
}

/// With less than it may come to need a text goes on as far as it can, and later from there.
#[test]
fn texts_start_beside_requests_that_have_the_memory() {
    let model = model(MODELS[0]);
    let mut scheduler = small(&model, 4);
    let text = kept(&mut scheduler, &prompt(2, 100));
    let (request, first) = plain(prompt(1, 10), 370);
    first.lock().unwrap().leaves = Some(50);
    scheduler.submit(request);
    // It holds up others of its kind alone.
    let (request, second) = plain(prompt(3, 10), 3);
    scheduler.submit(request);
    scheduler.step();
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
    let (request, told) = go_on(&text, &[], 60);
    scheduler.submit(request);
    run_until(&mut scheduler, || told.lock().unwrap().end.is_some());
    assert_eq!((why(&told).as_str(), usage(&told).made), ("Waits", PAGE + 1 - 100));
    assert!(first.lock().unwrap().end.is_none());
    let (request, then) = go_on(&text, &[], 31);
    scheduler.submit(request);
    run(&mut scheduler);
    let made = [told, then].map(|told| told.lock().unwrap().ids.clone()).concat();
    assert_eq!(made, whole(&model, prompt(2, 100), 60));
    assert_eq!((usage(&first).made, usage(&second).made), (50, 3));
}

#[test]
fn a_text_is_lent_to_one_at_a_time_in_turn() {
    let model = model(MODELS[0]);
    let mut scheduler = scheduler(&model, LIMITS);
    let text = kept(&mut scheduler, &prompt(1, 10));
    let [mut first, mut second, mut third] = [0; 3].map(|_| text.ask());
    assert!(matches!(second.within(Duration::ZERO), Poll::Pending));
    let loan = first.within(Duration::ZERO);
    assert!(matches!(loan, Poll::Ready(Some(_))) && text.is_wanted());
    assert!(matches!(second.within(Duration::ZERO), Poll::Pending));
    drop(loan);
    assert!(matches!(third.within(Duration::from_millis(1)), Poll::Pending), "the second is first");
    drop(second);
    let loan = third.within(Duration::ZERO);
    assert!(matches!(loan, Poll::Ready(Some(_))) && !text.is_wanted());
    text.give_up();
    assert!(scheduler.kept_bytes() > 0, "it is lent");
    drop(loan);
    assert_eq!(scheduler.kept_bytes(), 0);
    assert!(matches!(text.ask().within(Duration::ZERO), Poll::Ready(None)));
}
