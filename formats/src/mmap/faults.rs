//! Files that become shorter while they are mapped. The system has no page to give then and sends a signal; which file it was about is
//! told by the address, so that the program can end with an error that names it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// Maps that can be told apart at once: far more than the files of any checkpoint. A fault in another one ends the program by the signal.
const MAPS: usize = 4096;

/// Where a map lies. Free while `path` is null.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    path: AtomicPtr<Box<Path>>,
}

static SLOTS: [Slot; MAPS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), path: AtomicPtr::new(std::ptr::null_mut()) } }; MAPS];

/// Keeps a map known as long as it exists.
#[derive(Debug)]
pub(super) struct Known(Option<usize>);

impl Known {
    /// Makes the map at `bytes` of the file at `path` known.
    pub(super) fn new(bytes: &[u8], path: &Path) -> Self {
        let start = bytes.as_ptr().addr();
        let own = Box::into_raw(Box::new(Box::<Path>::from(path)));
        let free = |slot: &Slot| slot.path.compare_exchange(std::ptr::null_mut(), own, SeqCst, SeqCst).is_ok();
        let Some(i) = SLOTS.iter().position(free) else {
            // SAFETY: made by `Box::into_raw` above, and in no slot.
            drop(unsafe { Box::from_raw(own) });
            return Known(None);
        };
        SLOTS[i].start.store(start, SeqCst);
        SLOTS[i].end.store(start + bytes.len(), SeqCst);
        Known(Some(i))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        let Some(slot) = self.0.map(|i| &SLOTS[i]) else { return };
        slot.end.store(0, SeqCst);
        slot.start.store(0, SeqCst);
        let path = slot.path.swap(std::ptr::null_mut(), SeqCst);
        if !path.is_null() {
            // SAFETY: made by `Box::into_raw` in `new` and taken out of the slot here, once. Nobody reads it any more: a fault in a map
            // is looked up by the thread that reads the map, which therefore still exists.
            drop(unsafe { Box::from_raw(path) });
        }
    }
}

/// From now on, if a mapped file turns out to have become shorter, `action` is called with its path and then the program ends, at once,
/// with the exit code that it gives. The first call counts; a fault elsewhere ends the program by the signal, as without this. Errors: the
/// system refuses to watch.
///
/// The action runs in the thread that was reading the map, which holds no lock at that moment, so that it may print. Of several threads
/// that come upon lost pages, the first alone acts.
#[cfg(unix)]
pub fn on_lost_pages(action: impl Fn(&Path) -> u8 + Send + Sync + 'static) -> std::io::Result<()> {
    if ACTION.set(Box::new(action)).is_err() {
        return Ok(());
    }
    // The standard library's own handler of this signal, which looks for overflown stacks, is replaced and not called: it would make the
    // second of two threads end the program by the signal while the first one still prints.
    // SAFETY: zeros are a valid value of this struct of numbers and a function's address, and what matters of it is set.
    let mut how: libc::sigaction = unsafe { std::mem::zeroed() };
    how.sa_sigaction = lost as *const () as usize;
    how.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler runs where a map is read, not at an arbitrary point: whoever copies bytes out of a map holds no lock of the
    // allocator or of standard streams. For such a fault it never returns, so nothing goes on with bytes that are not there.
    match unsafe { libc::sigaction(libc::SIGBUS, &how, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// What is to be done about the file at a path, and the exit code.
#[cfg(unix)]
type Action = Box<dyn Fn(&Path) -> u8 + Send + Sync>;

#[cfg(unix)]
static ACTION: std::sync::OnceLock<Action> = std::sync::OnceLock::new();

/// What happens at the signal.
#[cfg(unix)]
extern "C" fn lost(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    // SAFETY: the system gives a valid description, and that of this signal has an address.
    let (sent, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr().addr()) };
    let hit = |s: &&Slot| (s.start.load(SeqCst)..s.end.load(SeqCst)).contains(&address);
    let path = SLOTS.iter().find(hit).map(|s| s.path.load(SeqCst)).filter(|p| !p.is_null());
    let (Some(path), Some(action), false) = (path, ACTION.get(), sent) else {
        // Not about a map: the fault is met again, or the signal sent once more, with nobody watching.
        // SAFETY: both may be called in a handler.
        unsafe {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            if sent {
                libc::raise(libc::SIGBUS);
            }
        }
        return;
    };
    if ENDING.swap(true, SeqCst) {
        loop {
            // SAFETY: waits for a signal; the first thread is about to end the program.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: the slot belongs to the map that this thread is reading, and is freed only with it.
    let code = action(unsafe { &*path });
    // SAFETY: ends the program without waiting for threads or running what is registered for its end, which could read the map again.
    unsafe { libc::_exit(code.into()) };
}

/// Elsewhere the system ends the program.
#[cfg(not(unix))]
pub fn on_lost_pages(_action: impl Fn(&Path) -> u8 + Send + Sync + 'static) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_at(address: usize) -> Option<String> {
        let hit = |s: &&Slot| (s.start.load(SeqCst)..s.end.load(SeqCst)).contains(&address);
        let path = SLOTS.iter().find(hit)?.path.load(SeqCst);
        // SAFETY: the tests keep the map known meanwhile.
        Some(unsafe { &*path }.display().to_string())
    }

    #[test]
    fn maps_are_known_by_their_addresses_as_long_as_they_exist() {
        let (a, b) = (vec![0u8; 64], vec![0u8; 64]);
        let known = [Known::new(&a, Path::new("a")), Known::new(&b, Path::new("b"))];
        assert_eq!(path_at(a.as_ptr().addr()).as_deref(), Some("a"));
        assert_eq!(path_at(b.as_ptr().addr() + 63).as_deref(), Some("b"));
        drop(known);
        assert_eq!(path_at(a.as_ptr().addr()), None);
    }
}
