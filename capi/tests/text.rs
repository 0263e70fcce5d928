//! What C code is given to keep is given back as it was taken.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    ffi::{CStr, c_char},
    ptr,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use metricbus_capi::*;

/// Sees whether what is given back is what was taken: `free` would not mind, and other allocators do.
struct Strict;

static WRONG: AtomicUsize = AtomicUsize::new(0);
/// The layout stands in front of each block.
const FRONT: usize = 64;

// SAFETY: the system's, at a distance from the beginning that keeps the alignment.
unsafe impl GlobalAlloc for Strict {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(whole) = whole(layout) else {
            return ptr::null_mut();
        };
        // SAFETY: it is not of no size.
        let start = unsafe { System.alloc(whole) };
        if start.is_null() {
            return start;
        }
        // SAFETY: there are so many bytes, and the alignment is that of a layout.
        unsafe {
            start
                .cast::<(usize, usize)>()
                .write((layout.size(), layout.align()));
            start.add(front(layout.align()))
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // Aligned too little or too much, it would begin elsewhere.
        // SAFETY: it was taken above.
        unsafe {
            let start = block.sub(front(layout.align()));
            let (size, align) = start.cast::<(usize, usize)>().read();
            if (size, align) != (layout.size(), layout.align()) {
                WRONG.fetch_add(1, SeqCst);
            }
            if let Ok(taken) = Layout::from_size_align(size, align)
                && let Some(whole) = whole(taken)
            {
                System.dealloc(start, whole);
            }
        }
    }
}

fn front(align: usize) -> usize {
    align.max(FRONT)
}

fn whole(layout: Layout) -> Option<Layout> {
    let size = layout.size().checked_add(front(layout.align()))?;
    Layout::from_size_align(size, layout.align().max(align_of::<usize>())).ok()
}

#[global_allocator]
static ALLOCATOR: Strict = Strict;

#[test]
fn a_text_that_its_owner_has_shortened_is_given_back_whole() {
    let mut bus = ptr::null_mut();
    let mut gauge: *mut mb_gauge = ptr::null_mut();
    let s = |text: &'static str| mb_str {
        ptr: text.as_ptr().cast(),
        len: text.len(),
    };
    // SAFETY: all of it lives during the calls; of the text, no more is written than it has.
    unsafe {
        assert_eq!(mb_bus_new(&mut bus), 0);
        let mut desc: mb_desc = std::mem::zeroed();
        desc.size = size_of::<mb_desc>();
        desc.name = s("depth");
        desc.help = s("Depth.");
        assert_eq!(mb_gauge_new(bus, &desc, &mut gauge), 0);
        mb_gauge_set(gauge, 1.0);
        for keep in [0, 1, 7, 8, 9, 20] {
            let (mut text, mut len): (*mut c_char, usize) = (ptr::null_mut(), 0);
            assert_eq!(mb_bus_text(bus, &mut text, &mut len), 0);
            assert!(len > 20);
            assert_eq!(CStr::from_ptr(text).count_bytes(), len);
            text.add(keep).write(0);
            mb_text_free(text);
        }
        mb_gauge_free(gauge);
        mb_bus_free(bus);
    }
    assert_eq!(WRONG.load(SeqCst), 0);
}
