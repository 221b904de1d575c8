//! Counts what an input makes the code allocate, and fails the input that makes it allocate without bound.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// What any input may cost at once: tables that are made at first use, and the whole grammar of a command line.
const BASE_BYTES: usize = 4 << 20;

/// … and what each byte of it may cost. A JSON array of the shortest numbers becomes values of 32 bytes, in a list that
/// doubles.
const BYTES_PER_BYTE: usize = 256;

thread_local! {
    /// Bytes allocated and not yet freed by this thread; if others free for it, it is wrong only while they run.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, counted by thread.
pub struct Counting;

fn count(bytes: isize) {
    // A thread that is ending no longer has counters, and nothing to prove.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        PEAK.try_with(|peak| peak.set(peak.get().max(live.get())))
    });
}

// SAFETY: every call is the system allocator's own, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, new_size) }
    }
}

/// Runs a target on an input; panics if it ever held more memory than the input may cost.
pub fn spend(input: &[u8], run: fn(&[u8])) {
    let before = LIVE.get();
    PEAK.set(before);
    run(input);
    let used = (PEAK.get() - before).unsigned_abs();
    let most = BASE_BYTES + BYTES_PER_BYTE * input.len();
    assert!(
        used <= most,
        "an input of {} bytes made it hold {used} bytes at once; at most {most} are sound",
        input.len()
    );
}
