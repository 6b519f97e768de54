//! How a terminal is set.

/// How the terminal of standard input is set.
pub struct TerminalMode(libc::termios);

impl TerminalMode {
    /// As it is now; `None` where standard input is no terminal.
    pub fn now() -> Option<TerminalMode> {
        let mut mode = std::mem::MaybeUninit::uninit();
        // SAFETY: fills the struct whose address it is given, where it returns 0.
        let got = unsafe { libc::tcgetattr(libc::STDIN_FILENO, mode.as_mut_ptr()) };
        // SAFETY: it has been filled.
        (got == 0).then(|| TerminalMode(unsafe { mode.assume_init() }))
    }

    /// Sets it so again. A terminal that has gone away needs it no more.
    pub fn restore(&self) {
        // SAFETY: reads the struct whose address it is given.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &self.0) };
    }
}
