//! Stop signals: the wire's own numbering against Linux's (signal(7)).

use engine::Error;

use super::known;
use crate::proto::Signal;

/// Linux numbers of the wire values 1 to 34, in their order. From `SIGRTMIN` on (35 on the wire, 34 to a process of
/// glibc or musl) the two scales run in parallel up to `SIGRTMAX`.
#[rustfmt::skip]
const NUMBERS: [i32; 34] = [
    /* ABRT */ 6, /* ALRM */ 14, /* BUS */ 7, /* CHLD */ 17, /* CLD */ 17, /* CONT */ 18, /* FPE */ 8, /* HUP */ 1,
    /* ILL */ 4, /* INT */ 2, /* IO */ 29, /* IOT */ 6, /* KILL */ 9, /* PIPE */ 13, /* POLL */ 29, /* PROF */ 27,
    /* PWR */ 30, /* QUIT */ 3, /* SEGV */ 11, /* STKFLT */ 16, /* STOP */ 19, /* SYS */ 31, /* TERM */ 15,
    /* TRAP */ 5, /* TSTP */ 20, /* TTIN */ 21, /* TTOU */ 22, /* URG */ 23, /* USR1 */ 10, /* USR2 */ 12,
    /* VTALRM */ 26, /* WINCH */ 28, /* XCPU */ 24, /* XFSZ */ 25,
];

/// Reads a stop signal; the default value is `None`.
pub fn stop_signal(field: &str, value: i32) -> Result<Option<i32>, Error> {
    let signal: Signal = known(field, value)?;
    let wire = i32::from(signal);
    Ok(match usize::try_from(wire).unwrap_or_default() {
        0 => None,
        n @ 1..=34 => Some(NUMBERS[n - 1]),
        _ => Some(wire - 1),
    })
}

/// Writes a signal back; a number without a name on the wire is the default value.
pub fn encode(number: i32) -> i32 {
    let named = NUMBERS.iter().position(|n| *n == number).and_then(|i| i32::try_from(i + 1).ok());
    match named {
        Some(wire) => wire,
        None if (34..=64).contains(&number) => number + 1,
        None => Signal::RuntimeDefault.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SIGRTMIN`, `SIGRTMINPLUS3`, `SIGRTMAXMINUS2`, `SIGRTMAX` as glibc and musl number them.
    fn real_time(name: &str) -> Option<i32> {
        let number = |s: &str| if s.is_empty() { Some(0) } else { s.parse::<i32>().ok() };
        let name = name.strip_prefix("SIGRTM")?;
        match name.strip_prefix("IN") {
            Some(rest) => Some(34 + number(rest.trim_start_matches("PLUS"))?),
            None => Some(64 - number(name.strip_prefix("AX")?.trim_start_matches("MINUS"))?),
        }
    }

    #[test]
    fn every_signal_on_the_wire_is_the_linux_signal_of_that_name() {
        for wire in 1..=65 {
            let name = Signal::try_from(wire).unwrap().as_str_name().trim_start_matches("SIGNAL_");
            let name = match name {
                "SIGCLD" => "SIGCHLD",
                "SIGIOT" => "SIGABRT",
                "SIGPOLL" => "SIGIO",
                other => other,
            };
            let expected = real_time(name).unwrap_or_else(|| linux_number(name));
            assert_eq!(stop_signal("stop_signal", wire).unwrap(), Some(expected), "{name}");
            assert_eq!(stop_signal("", encode(expected)).unwrap(), Some(expected), "{name} and back");
        }
    }

    /// What the shell's `kill -l NAME` says, an oracle that does not share our table.
    fn linux_number(name: &str) -> i32 {
        let shell = std::process::Command::new("bash")
            .args(["-c", "kill -l \"$0\"", name.trim_start_matches("SIG")])
            .output()
            .unwrap();
        String::from_utf8(shell.stdout).unwrap().trim().parse().unwrap()
    }

    #[test]
    fn the_default_is_none_and_unknown_values_are_refused_by_name() {
        assert_eq!(stop_signal("stop_signal", 0).unwrap(), None);
        let error = stop_signal("config.stop_signal", 66).unwrap_err();
        assert!(error.chain().contains("config.stop_signal"), "{error}");
    }
}
