//! A host of its own for each node of a network: network namespaces on one bridge, with a small file system for each node's
//! data, all inside namespaces that the test made for itself and that end with it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const INSIDE: &str = "TIDEGATE_INSIDE_NAMESPACES";
/// Where the test itself is, its clients and its origin.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 91, 0, 254);
/// An address of the link that no card has: what is sent there is lost.
const NOBODY: &str = "02:00:00:00:00:99";

pub enum Entered {
    Inside,
    /// The test ran inside, and passed.
    Over,
    /// This machine does not let us.
    Refused,
}

/// Runs the calling test, by its name, once more in namespaces of its own.
pub fn enter(test: &str) -> Entered {
    if std::env::var_os(INSIDE).is_some() {
        return Entered::Inside;
    }
    let plain: &[&str] = &["--net", "--mount", "--fork", "--kill-child"];
    let as_user: &[&str] = &["--user", "--map-root-user", "--net", "--mount", "--fork", "--kill-child"];
    let works = |how: &&&[&str]| {
        let mut try_it = Command::new("unshare");
        try_it.args(**how).args(["ip", "link", "add", "br0", "type", "bridge"]).stderr(Stdio::null());
        try_it.status().is_ok_and(|s| s.success())
    };
    let Some(how) = [plain, as_user].iter().find(works).copied() else { return Entered::Refused };
    let mut again = Command::new("unshare");
    again.args(how).arg(std::env::current_exe().unwrap()).args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    assert!(again.status().unwrap().success(), "{test} failed in its namespaces");
    Entered::Over
}

fn done(program: &str, arguments: &str) {
    let out = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(out.status.success(), "{program} {arguments}: {}", super::error_of(&out));
}

pub struct Hosts {
    disks: Vec<PathBuf>,
    count: u8,
}

impl Hosts {
    /// The bridge; to be called in a network namespace where nothing is yet.
    pub fn new() -> Self {
        // Names of namespaces are kept there.
        done("mount", "-t tmpfs none /run");
        done("ip", "link set lo up");
        done("ip", "link add br0 type bridge");
        done("ip", &format!("addr add {OUTSIDE}/24 dev br0"));
        done("ip", "link set br0 up");
        Self { disks: Vec::new(), count: 0 }
    }

    /// A host by this name, with `data` on a disk of its own; its address.
    pub fn add(&mut self, name: &str, data: &Path) -> IpAddr {
        self.count += 1;
        let (n, ip) = (self.count, IpAddr::from([10, 91, 0, self.count]));
        done("ip", &format!("netns add {name}"));
        done("ip", &format!("link add v{n} type veth peer name eth0 netns {name}"));
        done("ip", &format!("link set v{n} master br0 up"));
        done("ip", &format!("-n {name} addr add {ip}/24 dev eth0"));
        done("ip", &format!("-n {name} link set eth0 up"));
        done("ip", &format!("-n {name} link set lo up"));
        std::fs::create_dir_all(data).unwrap();
        done("mount", &format!("-t tmpfs -o size=48m none {}", data.display()));
        self.disks.push(data.to_owned());
        ip
    }

    /// From now on all that the one host sends to the other is lost.
    pub fn cut(from: &str, to: IpAddr) {
        done("ip", &format!("-n {from} neigh replace {to} lladdr {NOBODY} dev eth0 nud permanent"));
    }

    pub fn mend(from: &str, to: IpAddr) {
        done("ip", &format!("-n {from} neigh del {to} dev eth0"));
    }

    /// Not a byte more fits on that disk.
    pub fn fill_disk(data: &Path) {
        use std::io::Write;
        let mut file = std::fs::File::create(data.join("filler")).unwrap();
        let mut piece = vec![0; 1 << 20];
        while !piece.is_empty() {
            if file.write_all(&piece).is_err() {
                piece.truncate(piece.len() / 2);
            }
        }
    }

    pub fn free_disk(data: &Path) {
        std::fs::remove_file(data.join("filler")).unwrap();
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for disk in &self.disks {
            let _ = Command::new("umount").arg("-l").arg(disk).status();
        }
    }
}

/// Connects as a program on that host would; on this one where there is no name.
pub fn connect(host: Option<&str>, address: SocketAddr) -> std::io::Result<TcpStream> {
    let connect = move || TcpStream::connect_timeout(&address, Duration::from_secs(5));
    let Some(host) = host else { return connect() };
    let namespace = std::fs::File::open(format!("/run/netns/{host}"))?;
    // A socket stays in the namespace that it was made in; the thread that was moved there ends.
    let there = std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), None)?;
        connect()
    });
    there.join().unwrap()
}
