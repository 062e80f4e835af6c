//! Real programs on both ends: nginx and curl, wrk, redis, git.

use std::fs;
use std::io::{BufWriter, Write};

use crate::tools::Pattern;
use crate::world::{Cmd, HOST4, HOST6, INET4, INET6, Ns, Proc, World};

/// 1 GiB.
const BIG: usize = 1 << 30;

/// Starts nginx on port 80 of `ns`; `cmd` makes a program there. Serves the files in `big/` and logs to `NAME/`.
pub fn nginx(w: &World, name: &str, cmd: impl Fn(&[&str]) -> Cmd, ns: &Ns) -> Proc {
    let dir = w.path(name);
    let root = w.path("www");
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("small"), "a small file\n").unwrap();
    let (dir, root) = (dir.display(), root.display());
    // `user` matters in the guest only, where we are root and no other user exists.
    let config = format!(
        "user root root; daemon off; worker_processes 2; pid {dir}/pid; error_log {dir}/error.log;
         events {{ worker_connections 2048; }}
         http {{
             access_log {dir}/access.log; sendfile on; keepalive_requests 10000000;
             client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
             uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;
             server {{ listen 80 backlog=1024; listen [::]:80 backlog=1024; root {root}; }}
         }}"
    );
    let path = w.path(&format!("{name}/nginx.conf"));
    fs::write(&path, config).unwrap();
    let path = path.display().to_string();
    let error = format!("{dir}/error.log");
    let proc = cmd(&["nginx", "-c", &path, "-e", &error]).spawn();
    ns.await_listener(80);
    proc
}

/// Makes `www/big`, 1 GiB that does not repeat, and returns its SHA-256.
pub fn big_file(w: &World) -> String {
    fs::create_dir_all(w.path("www")).unwrap();
    let file = fs::File::create(w.path("www/big")).unwrap();
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let mut pattern = Pattern::new(10);
    let mut block = vec![0; 1 << 20];
    for _ in 0..BIG / block.len() {
        pattern.fill(&mut block);
        file.write_all(&block).unwrap();
    }
    file.flush().unwrap();
    let sum = w.host.cmd(&["sha256sum", "/mnt/www/big"]).limit(120).ok();
    sum.split_whitespace().next().unwrap().to_owned()
}

fn download(cmd: impl Fn(&[&str]) -> Cmd, url: &str) -> String {
    let line = format!("curl -sSg --fail --max-time 150 {url} | sha256sum");
    let sum = cmd(&["bash", "-o", "pipefail", "-ec", &line]).limit(160).ok();
    sum.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_gibibyte_out_of_a_published_nginx() {
    World::run(|w| {
        let sum = big_file(w);
        let guest = w.guest(&["-p", "8080:80"]);
        let _nginx = nginx(w, "inside", |argv| guest.cmd(argv), &guest.ns);
        assert_eq!(download(|argv| w.internet.cmd(argv), &format!("http://{HOST4}:8080/big")), sum);
        assert_eq!(download(|argv| w.internet.cmd(argv), &format!("http://[{HOST6}]:8080/big")), sum);
    });
}

#[test]
fn a_gibibyte_into_the_guest() {
    World::run(|w| {
        let sum = big_file(w);
        let _nginx = nginx(w, "outside", |argv| w.internet.cmd(argv), &w.internet);
        let guest = w.guest::<&str>(&[]);
        assert_eq!(download(|argv| guest.cmd(argv), &format!("http://{INET4}/big")), sum);
        assert_eq!(download(|argv| guest.cmd(argv), &format!("http://[{INET6}]/big")), sum);
    });
}

fn wrk(cmd: impl Fn(&[&str]) -> Cmd, url: &str) {
    let out = cmd(&["wrk", "-t", "2", "-c", "200", "-d", "5s", "--timeout", "10s", url]).ok();
    assert!(!out.contains("Socket errors"), "{url}\n{out}");
    assert!(!out.contains("Non-2xx"), "{url}\n{out}");
    let requests = out.lines().find_map(|l| l.split_once(" requests in ")?.0.trim().parse::<u64>().ok());
    assert!(requests.is_some_and(|n| n > 1000), "{url}\n{out}");
}

#[test]
fn wrk_keeps_200_connections() {
    World::run(|w| {
        let guest = w.guest(&["-p", "8080:80"]);
        let _inside = nginx(w, "inside", |argv| guest.cmd(argv), &guest.ns);
        let _outside = nginx(w, "outside", |argv| w.internet.cmd(argv), &w.internet);
        wrk(|argv| w.internet.cmd(argv), &format!("http://{HOST4}:8080/small"));
        wrk(|argv| w.internet.cmd(argv), &format!("http://[{HOST6}]:8080/small"));
        wrk(|argv| guest.cmd(argv), &format!("http://{INET4}/small"));
        wrk(|argv| guest.cmd(argv), &format!("http://[{INET6}]/small"));
    });
}

/// Starts redis in `ns`; `cmd` makes a program there.
pub fn redis_server(w: &World, cmd: impl Fn(&[&str]) -> Cmd, ns: &Ns) -> Proc {
    let dir = w.path("").display().to_string();
    let argv = ["redis-server", "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no", "--save", ""];
    let proc = cmd(&[&argv[..], &["--dir", &dir]].concat()).spawn();
    ns.await_listener(6379);
    proc
}

fn redis_client(cmd: impl Fn(&[&str]) -> Cmd, server: &str, port: &str) {
    for pipeline in ["1", "16"] {
        let argv = ["redis-benchmark", "-h", server, "-p", port, "-c", "50", "-n", "10000", "-d", "1000"];
        let out = cmd(&[&argv[..], &["-P", pipeline, "-t", "ping,set,get,lpush,lrange_100", "-q"]].concat()).ok();
        for command in ["PING_INLINE", "SET", "GET", "LPUSH", "LRANGE_100"] {
            assert!(out.contains(command) && out.contains("requests per second"), "{server}: no {command} in\n{out}");
        }
    }
    // One value that is longer than any buffer on the way.
    let cli = format!("redis-cli -h {server} -p {port}");
    let script = format!(
        "head -c 20000000 /dev/urandom | base64 -w0 > /mnt/value.{port}
         {cli} -x set big < /mnt/value.{port} | grep -q OK
         {cli} --raw get big | head -c -1 | cmp - /mnt/value.{port}
         test $({cli} --raw strlen big) = $(stat -c %s /mnt/value.{port})"
    );
    cmd(&["bash", "-o", "pipefail", "-ec", &script]).ok();
}

#[test]
fn redis_inside_benchmark_outside() {
    World::run(|w| {
        let guest = w.guest(&["-p", "16379:6379"]);
        let _redis = redis_server(w, |argv| guest.cmd(argv), &guest.ns);
        redis_client(|argv| w.internet.cmd(argv), &HOST4.to_string(), "16379");
        redis_client(|argv| w.internet.cmd(argv), &HOST6.to_string(), "16379");
    });
}

#[test]
fn redis_outside_benchmark_inside() {
    World::run(|w| {
        let guest = w.guest::<&str>(&[]);
        let _redis = redis_server(w, |argv| w.internet.cmd(argv), &w.internet);
        redis_client(|argv| guest.cmd(argv), &INET4.to_string(), "6379");
        redis_client(|argv| guest.cmd(argv), &INET6.to_string(), "6379");
    });
}

#[test]
fn git_clones_from_a_daemon() {
    World::run(|w| {
        w.internet.sh(
            "export HOME=/mnt/home; cd /mnt; mkdir repos; git init -q -b main repos/project; cd repos/project
             git config user.email nobody@example.org; git config user.name nobody
             for i in 1 2 3 4 5 6 7 8; do
                 head -c 1500000 /dev/urandom > file$i; git add .; git commit -q -m \"change $i\"
             done",
        );
        let argv = ["git", "daemon", "--reuseaddr", "--export-all", "--base-path=/mnt/repos", "--port=9418"];
        let _daemon = w.internet.cmd(&argv).spawn();
        w.internet.await_listener(9418);
        let guest = w.guest::<&str>(&[]);
        for (server, to) in [(INET4.to_string(), "clone4"), (format!("[{INET6}]"), "clone6")] {
            guest.sh(&format!("git clone -q git://{server}/project /mnt/{to}; cd /mnt/{to}; git fsck --strict"));
            let (here, there) =
                (format!("git -C /mnt/{to} rev-parse HEAD"), "git -C /mnt/repos/project rev-parse HEAD");
            assert_eq!(guest.sh(&here), w.internet.sh(there));
        }
    });
}
