//! Confinement cannot be undone, so each test runs itself again, alone, in a process of its own.

use super::*;
use crate::allocator::Account;
use crate::session::OnnxSession;
use bytes::Bytes;
use fnctl_core::inference::{Tensor, TensorType};
use ort::environment::{Environment, GlobalThreadPoolOptions};
use ort::session::Session;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

const IN_CHILD: &str = "FNCTL_TEST_CONFINED";
const MIB: u64 = 1 << 20;

/// Runs `body` in a process that runs nothing but the test `name` of this module. The harness runs it on a second thread.
fn alone(name: &str, body: fn()) {
    if std::env::var_os(IN_CHILD).is_some() {
        return body();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args([&format!("confine::tests::{name}"), "--exact", "--nocapture"])
        .arg("--test-threads=1")
        .env(IN_CHILD, "1")
        .env("ORT_DISABLE_TELEMETRY", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned()
        + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{}:\n{text}", child.status);
    assert!(text.contains("1 passed"), "{text}");
}

fn limits() -> Limits {
    Limits {
        open_files: 64,
        memory: Some(2048 * MIB),
        shared_memory: 16 * MIB,
        parent: Some(std::os::unix::process::parent_id()),
    }
}

/// What this kernel must be able to do for the tests to say anything; a kernel without it fails them, by name.
fn confined() -> Confinement {
    let confinement = confine(&limits()).unwrap();
    println!("{confinement}");
    assert_eq!(confinement.seccomp, Measure::Enforced);
    assert_eq!(confinement.process, Measure::Enforced);
    assert_eq!(confinement.memory, Measure::Enforced);
    assert_eq!(confinement.shared_memory, Measure::Enforced);
    assert_eq!(confinement.parent, Measure::Enforced);
    confinement
}

fn is_refused<T>(result: std::io::Result<T>) {
    let error = result.err().expect("it must be refused");
    assert_eq!(
        error.raw_os_error(),
        Some(Errno::PERM.raw_os_error()),
        "{error}"
    );
}

#[test]
fn a_gap_is_what_nothing_enforces() {
    let all = || Confinement {
        process: Measure::Enforced,
        memory: Measure::Enforced,
        shared_memory: Measure::Enforced,
        parent: Measure::Unwanted,
        first_to_die: Measure::Absent("no /proc".into()),
        privileges: Measure::Enforced,
        landlock: Measure::Partial("an old version".into()),
        seccomp: Measure::Enforced,
    };
    assert_eq!(all().gaps(), Vec::<String>::new());
    let mut alone = all();
    alone.seccomp = Measure::Absent("not compiled in".into());
    assert_eq!(
        alone.gaps(),
        [
            "seccomp: absent (not compiled in)",
            "landlock: partial (an old version)"
        ]
    );
    let mut bare = all();
    bare.landlock = Measure::Absent("off".into());
    assert_eq!(bare.gaps(), ["landlock: absent (off)"]);
}

#[test]
fn nothing_outside_can_be_reached() {
    alone("nothing_outside_can_be_reached", || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        confined();
        is_refused(File::open("/etc/passwd"));
        is_refused(File::create("/tmp/fnctl-confined"));
        is_refused(std::fs::read_dir("/"));
        is_refused(std::fs::metadata("/etc/passwd"));
        is_refused(std::fs::remove_file("/etc/passwd"));
        is_refused(std::net::TcpStream::connect(address));
        is_refused(std::net::TcpListener::bind("127.0.0.1:0"));
        is_refused(std::net::UdpSocket::bind("127.0.0.1:0"));
        is_refused(UnixStream::connect("/run/any.sock"));
        is_refused(std::os::unix::net::UnixDatagram::pair());
        // Taken in by a listener that was open before: also not.
        listener.set_nonblocking(true).unwrap();
        is_refused(listener.accept());
        is_refused(Command::new("/bin/true").spawn());
        let parent = rustix::process::getppid().unwrap();
        is_refused(rustix::process::test_kill_process(parent).map_err(Into::into));
        let refused = rustix::process::kill_process(parent, rustix::process::Signal::USR1);
        assert_eq!(refused, Err(Errno::PERM));
        // Nor is there a way back.
        let raised = rustix::process::setrlimit(
            rustix::process::Resource::Nofile,
            rustix::process::Rlimit {
                current: Some(1),
                maximum: Some(1),
            },
        );
        assert_eq!(raised, Err(Errno::PERM));
    });
}

#[test]
fn no_process_can_be_made() {
    alone("no_process_can_be_made", || {
        confined();
        // SAFETY: the child, were there one, would leave at once by a call that is safe after fork.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                libc::_exit(0);
            }
            assert_eq!(child, -1);
            assert_eq!(
                Errno::from_io_error(&std::io::Error::last_os_error()),
                Some(Errno::PERM)
            );
            // With its own flags, as a process of its own or in name spaces of its own.
            for flags in [
                libc::SIGCHLD,
                libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
                libc::CLONE_NEWUSER | libc::SIGCHLD,
            ] {
                let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
                if child == 0 {
                    libc::_exit(0);
                }
                assert_eq!(child, -1);
            }
            // glibc's way to start threads must see a kernel that is too old for it.
            assert_eq!(libc::syscall(libc::SYS_clone3, 0, 0), -1);
        }
        assert_eq!(
            std::io::Error::last_os_error().raw_os_error(),
            Some(libc::ENOSYS)
        );
    });
}

#[test]
fn descriptors_threads_and_shared_memory_work() {
    alone("descriptors_threads_and_shared_memory_work", || {
        let mut inherited = File::open(std::env::current_exe().unwrap()).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        confined();
        let mut magic = [0; 4];
        inherited.read_exact(&mut magic).unwrap();
        assert_eq!(&magic, b"\x7fELF");
        assert!(rustix::fs::fstat(&inherited).unwrap().st_size > 0);
        assert!(inherited.seek(std::io::SeekFrom::End(0)).unwrap() > 0);

        let sums: Vec<u64> = (0..8_u64)
            .map(|index| std::thread::spawn(move || (0..=index).sum()))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert_eq!(sums, [0, 1, 3, 6, 10, 15, 21, 28]);

        // The control socket in an event loop that is made afterwards.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            here.set_nonblocking(true).unwrap();
            there.set_nonblocking(true).unwrap();
            let mut here = tokio::net::UnixStream::from_std(here).unwrap();
            let mut there = tokio::net::UnixStream::from_std(there).unwrap();
            tokio::spawn(async move { here.write_all(b"ping").await.unwrap() });
            let mut text = [0; 4];
            there.read_exact(&mut text).await.unwrap();
            assert_eq!(&text, b"ping");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            tokio::task::spawn_blocking(|| ()).await.unwrap();
        });

        let memfd =
            rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .unwrap();
        rustix::fs::ftruncate(&memfd, MIB).unwrap();
        rustix::fs::fcntl_add_seals(&memfd, SealFlags::GROW | SealFlags::SHRINK).unwrap();
        // SAFETY: a fresh mapping of 1 MiB of a file of that size, which nobody else has; unmapped once, at the end.
        unsafe {
            let length = usize::try_from(MIB).unwrap();
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let ring = rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                protection,
                MapFlags::SHARED,
                &memfd,
                0,
            )
            .unwrap();
            ring.cast::<u8>().write(7);
            assert_eq!(ring.cast::<u8>().read(), 7);
            // Never to be run.
            let executable = rustix::mm::mprotect(
                ring,
                length,
                rustix::mm::MprotectFlags::READ | rustix::mm::MprotectFlags::EXEC,
            );
            assert_eq!(executable, Err(Errno::PERM));
            let mapped = rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::EXEC,
                MapFlags::SHARED,
                &memfd,
                0,
            );
            assert_eq!(mapped.err(), Some(Errno::PERM));
            rustix::mm::munmap(ring, length).unwrap();
        }
    });
}

#[test]
fn what_it_takes_is_bounded() {
    alone("what_it_takes_is_bounded", || {
        // Or growing too far would end the process, and the test with it.
        // SAFETY: ignoring a signal installs no code.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        confined();
        let memfd = rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memfd, 16 * MIB).unwrap();
        assert_eq!(
            rustix::fs::ftruncate(&memfd, 16 * MIB + 1),
            Err(Errno::FBIG)
        );
        assert_eq!(
            rustix::io::pwrite(&memfd, b"beyond", 16 * MIB),
            Err(Errno::FBIG)
        );

        let mut bytes = Vec::<u8>::new();
        assert!(bytes.try_reserve_exact(1 << 30).is_ok());
        assert!(bytes.try_reserve_exact(1 << 32).is_err());
        drop(bytes);

        let mut copies = Vec::new();
        let refused = loop {
            match memfd.try_clone() {
                Ok(copy) => copies.push(copy),
                Err(error) => break error,
            }
            assert!(copies.len() <= 64);
        };
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::MFILE));
        assert_eq!(
            rustix::process::getrlimit(rustix::process::Resource::Core).maximum,
            Some(0)
        );
    });
}

#[test]
fn without_shared_memory_none_can_be_made() {
    alone("without_shared_memory_none_can_be_made", || {
        let limits = Limits {
            shared_memory: 0,
            memory: None,
            ..limits()
        };
        let confinement = confine(&limits).unwrap();
        assert_eq!(confinement.memory, Measure::Unwanted);
        let made = rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC);
        assert_eq!(made.err(), Some(Errno::PERM));
    });
}

#[test]
fn a_parent_that_is_gone_is_noticed() {
    alone("a_parent_that_is_gone_is_noticed", || {
        let limits = Limits {
            parent: Some(std::os::unix::process::parent_id() + 1),
            ..limits()
        };
        assert!(matches!(confine(&limits), Err(ConfineError::ParentGone)));
    });
}

#[test]
fn an_abort_still_ends_the_process() {
    if std::env::var_os(IN_CHILD).is_some() {
        confined();
        std::process::abort();
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["confine::tests::an_abort_still_ends_the_process", "--exact"])
        .arg("--test-threads=1")
        .env(IN_CHILD, "1")
        .output()
        .unwrap();
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.status.signal(), Some(libc::SIGABRT));
}

/// A thread that runs before and acts after.
fn thread_before<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> (std::sync::mpsc::SyncSender<()>, std::thread::JoinHandle<T>) {
    let (tx, rx) = std::sync::mpsc::sync_channel(1);
    let thread = std::thread::spawn(move || {
        rx.recv().unwrap();
        act()
    });
    (tx, thread)
}

#[test]
fn threads_that_ran_before_are_under_seccomp_too() {
    alone("threads_that_ran_before_are_under_seccomp_too", || {
        let (go, before) = thread_before(|| File::open("/etc/passwd").map(drop));
        let confinement = confined();
        go.send(()).unwrap();
        is_refused(before.join().unwrap());
        assert_eq!(confinement.privileges, Measure::Enforced);
    });
}

#[test]
fn threads_that_ran_before_give_up_files_and_capabilities() {
    alone(
        "threads_that_ran_before_give_up_files_and_capabilities",
        || {
            let (go, before) = thread_before(|| {
                (
                    File::open("/etc/passwd").map(drop),
                    rustix::thread::capabilities(None).unwrap(),
                    rustix::thread::no_new_privs().unwrap(),
                )
            });
            let rules = super::landlock::rules().unwrap();
            let descriptor = super::landlock::descriptor(&rules).unwrap();
            assert!(descriptor.is_some(), "this kernel has no Landlock");
            let uncovered = siblings::give_up(descriptor.as_ref().map(std::os::fd::AsFd::as_fd));
            assert_eq!(uncovered, Some(0));
            // This thread asked the others, and is not restricted itself.
            File::open("/etc/passwd").unwrap();
            go.send(()).unwrap();
            let (opened, capabilities, no_new_privileges) = before.join().unwrap();
            let error = opened.unwrap_err();
            assert_eq!(Errno::from_io_error(&error), Some(Errno::ACCESS));
            assert_eq!(capabilities, siblings::NO_CAPABILITIES);
            assert!(no_new_privileges);
        },
    );
}

#[test]
fn a_thread_that_does_not_answer_is_counted() {
    alone("a_thread_that_does_not_answer_is_counted", || {
        let (blocked, is_blocked) = std::sync::mpsc::sync_channel(1);
        let (end, ended) = std::sync::mpsc::sync_channel::<()>(1);
        let deaf = std::thread::spawn(move || {
            // SAFETY: blocks every signal for this thread; the set is filled in before it is used.
            unsafe {
                let mut every: libc::sigset_t = std::mem::zeroed();
                libc::sigfillset(&mut every);
                libc::pthread_sigmask(libc::SIG_BLOCK, &every, std::ptr::null_mut());
            }
            blocked.send(()).unwrap();
            ended.recv().unwrap();
            // What was sent must not end the process now.
            // SAFETY: as above.
            unsafe {
                let none: libc::sigset_t = std::mem::zeroed();
                libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            }
        });
        is_blocked.recv().unwrap();
        let confinement = confined();
        let Measure::Partial(why) = &confinement.landlock else {
            panic!("{confinement}");
        };
        assert!(why.contains("1 of the threads that ran before"), "{why}");
        end.send(()).unwrap();
        deaf.join().unwrap();
    });
}

#[test]
fn landlock_alone_closes_files_and_ports() {
    alone("landlock_alone_closes_files_and_ports", || {
        let mut inherited = File::open("/proc/self/exe").unwrap();
        let rules = super::landlock::rules().unwrap();
        let measure = super::landlock::enforce(rules, Some(0)).unwrap();
        assert!(!matches!(measure, Measure::Absent(_)), "{measure}");
        let denied = |error: std::io::Error| {
            assert_eq!(Errno::from_io_error(&error), Some(Errno::ACCESS), "{error}");
        };
        denied(File::open("/etc/passwd").unwrap_err());
        denied(File::create("/tmp/fnctl-confined").unwrap_err());
        denied(std::fs::read_dir("/").unwrap_err());
        denied(std::net::TcpListener::bind("127.0.0.1:0").unwrap_err());
        denied(Command::new("/bin/true").spawn().unwrap_err());
        let parent = rustix::process::getppid().unwrap();
        assert_eq!(rustix::process::test_kill_process(parent), Err(Errno::PERM));
        let mut magic = [0; 4];
        inherited.read_exact(&mut magic).unwrap();
        let memfd = rustix::fs::memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memfd, MIB).unwrap();
    });
}

/// An environment as the platform makes it; it reads the processor's facts, so it comes first.
fn environment() -> Environment {
    let library = crate::find_library(&crate::Config::default()).unwrap();
    let builder = ort::init_from(library).unwrap();
    let pool = GlobalThreadPoolOptions::default()
        .with_intra_threads(2)
        .and_then(|pool| pool.with_spin_control(false))
        .unwrap();
    builder.with_global_thread_pool(pool).build().unwrap()
}

/// Zeros for every input, `any` in turn for the sizes that may be any, and one after that.
fn zeros(session: &OnnxSession, any: &[u32]) -> Vec<(String, Tensor)> {
    let mut any = any.iter().copied();
    let mut size = |size: &i64| u32::try_from(*size).unwrap_or_else(|_| any.next().unwrap_or(1));
    let input = |port: &fnctl_core::inference::Port| {
        let dimensions: Vec<u32> = port.shape.iter().map(&mut size).collect();
        let elements: u32 = dimensions.iter().product();
        let size = match port.ty {
            TensorType::U8 => 1,
            TensorType::Fp16 | TensorType::Bf16 => 2,
            TensorType::Fp32 | TensorType::I32 => 4,
            TensorType::Fp64 | TensorType::I64 => 8,
        };
        let tensor = Tensor {
            dimensions,
            ty: port.ty,
            data: Bytes::from(vec![0; elements as usize * size]),
        };
        (port.name.clone(), tensor)
    };
    session.info.inputs.iter().map(input).collect()
}

fn load_and_run(environment: &Environment, model: &[u8], any: &[u32]) -> Vec<(String, Tensor)> {
    let session = Session::builder(environment)
        .unwrap()
        .commit_from_memory(model)
        .unwrap();
    let session = Arc::new(OnnxSession::new(session, Arc::new(Account::default())).unwrap());
    let run = session.prepare(zeros(&session, any)).unwrap();
    std::thread::spawn(move || run.execute().unwrap())
        .join()
        .unwrap()
}

/// The repository's models, each with the sizes its graph leaves open.
const MODELS: [(&str, &[u32]); 10] = [
    ("examples/fraud/models/fraud_mlp16.onnx", &[]),
    ("examples/python-iris/models/iris_logreg.onnx", &[]),
    ("examples/javascript-digits/models/digits_mlp.onnx", &[]),
    ("examples/sentiment/models/sentiment_hash8192.onnx", &[]),
    ("examples/file-type/models/magika_standard_v3_3.onnx", &[]),
    (
        "examples/image-orientation/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        &[1, 3, 48, 192],
    ),
    ("tests/fixtures/models/fraud_gbdt16_label_prob.onnx", &[]),
    ("tests/fixtures/models/light_squeezenet.onnx", &[]),
    ("tests/fixtures/models/light_vgg19.onnx", &[]),
    (
        "tests/fixtures/models/silero_vad_16k_op15.onnx",
        &[1, 576, 1],
    ),
];

fn opened(name: &str) -> File {
    File::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../").to_owned() + name).unwrap()
}

#[test]
fn real_models_load_from_descriptors_and_run() {
    alone("real_models_load_from_descriptors_and_run", || {
        let files = MODELS.map(|(name, _)| opened(name));
        let environment = environment();
        confined();
        for ((name, any), mut file) in MODELS.into_iter().zip(files) {
            let mut model = Vec::new();
            file.read_to_end(&mut model).unwrap();
            let outputs = load_and_run(&environment, &model, any);
            assert!(!outputs.is_empty(), "{name}");
            assert!(
                outputs.iter().all(|(_, tensor)| !tensor.data.is_empty()),
                "{name}"
            );
        }
    });
}

#[test]
fn a_model_reads_no_file_beside_it() {
    alone("a_model_reads_no_file_beside_it", || {
        let environment = environment();
        let model = crate::tests::model_with_external_data();
        let load = || {
            Session::builder(&environment)
                .unwrap()
                .commit_from_memory(&model)
        };
        let refused = "Operation not permitted";
        // What ONNX Runtime itself thinks of such a model is its own affair and changes; that it gets to the file does not.
        let before = load().err().map(|error| error.to_string());
        assert!(before.is_none_or(|error| !error.contains(refused)));
        confined();
        let error = load().err().map(|error| error.to_string());
        assert!(
            error.as_ref().is_some_and(|error| error.contains(refused)),
            "{error:?}"
        );
    });
}

#[test]
fn it_ends_with_its_parent() {
    const STAGE: &str = "FNCTL_TEST_STAGE";
    let test = "confine::tests::it_ends_with_its_parent";
    let again = |stage: &str, output: Stdio| {
        Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(STAGE, stage)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    match std::env::var(STAGE).as_deref() {
        Ok("host") => {
            confined();
            println!("ready");
            loop {
                std::thread::park();
            }
        }
        Ok(_) => {
            // On this thread, which lives as long as the process does.
            again("host", Stdio::inherit()).wait().unwrap();
        }
        Err(_) => {
            let mut platform = again("platform", Stdio::piped());
            let mut output = BufReader::new(platform.stdout.take().unwrap());
            let mut line = String::new();
            while !line.contains("ready") {
                line.clear();
                assert!(output.read_line(&mut line).unwrap() > 0);
            }
            platform.kill().unwrap();
            platform.wait().unwrap();
            // The host holds the other end of the pipe as long as it lives.
            let (ended, end) = std::sync::mpsc::sync_channel(1);
            std::thread::spawn(move || ended.send(output.read_to_end(&mut Vec::new()).is_ok()));
            assert!(
                end.recv_timeout(std::time::Duration::from_secs(20))
                    .unwrap()
            );
        }
    }
}
