//! Memory is erased when it is freed: whatever moved or grew inside the engine, no key stays behind in the heap.
//!
//! The key types erase themselves, but a move leaves a copy of its source behind, and the AEAD's expanded keys know nothing
//! of erasure. Buffers of the packet path are kept from call to call, so that this costs it nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

struct ErasingAllocator;

#[global_allocator]
static ALLOCATOR: ErasingAllocator = ErasingAllocator;

// SAFETY: memory comes from `System`, with the layouts that the caller gives. The default `realloc`, which allocates, copies
// and frees, is what erases the memory of something that grows.
unsafe impl GlobalAlloc for ErasingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller gives memory that `alloc` returned for this layout, and that nobody uses any more.
        unsafe {
            pointer.write_bytes(0, layout.size());
            // Writing to memory that is about to be freed would be optimised away.
            System.dealloc(black_box(pointer), layout);
        }
    }
}
