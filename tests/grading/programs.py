"""Hostile programs. Each defines `f`, which is asked for f(1) == 2 unless a test says otherwise."""

# A hostile program that ends by itself, or by its limits, with a verdict: program, what the reason holds.
WRONG = {
    "endless loop": ("def f(x):\n    while True: pass", "processor time"),
    "loop at import": ("while True: pass", "processor time"),
    "ignores every signal": (
        """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def f(x):
    while True: pass
""",
        "processor time",
    ),
    "fork bomb": (
        """
import os
def f(x):
    while True:
        try: os.fork()
        except OSError: pass
""",
        "processor time",
    ),
    "exit before the tests": ("import sys; sys.exit(0)", "ended itself"),
    "exit in the function": ("import os\ndef f(x): os._exit(0)", "no value"),
    "another program": ("import os\ndef f(x): os.execv('/usr/bin/env', ['env'])", "no value"),
    "segfault": ("import ctypes\ndef f(x): ctypes.string_at(0)", "SIGSEGV"),
    "kills itself": ("import os\ndef f(x): os.kill(os.getpid(), 9)", "SIGKILL"),
    "memory bomb": ("def f(x): return len(bytearray(2**34))", "MemoryError"),
    "slow memory bomb": ("def f(x):\n    kept = []\n    while True: kept.append(bytearray(2**22))", "MemoryError"),
    "flood of output": ("def f(x):\n    while True: print('x' * 10000)", "OSError"),
    "flood of errors": ("import sys\ndef f(x):\n    while True: sys.stderr.write('x' * 10000)", "OSError"),
    "recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x + 1)",
        "",
    ),
    "a number without end": ("def f(x): return 9 ** (9 ** 9)", ""),
    "huge value": ("def f(x): return 'x' * 10**8", "too large"),
    "huge list": ("def f(x): return [0] * 10**7", "too large"),
    "input past its end": ("def f(x):\n    input()\n    input()", "EOFError"),
    "closes all descriptors": ("import os\nos.closerange(0, 64)\ndef f(x): return 2", ""),
    "a source that the compiler cannot read": ("f = " + "(" * 5000, "Error"),
    "null bytes": ("def f(x): return 2\n\0", "Error"),
    "a surrogate": ("def f(x): return '\ud800'", ""),
    # The judge.
    "equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return Any()",
        "not built in",
    ),
    "an int that equals everything": (
        "class Int(int):\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
        "    __add__ = __radd__ = __int__ = __index__ = __repr__ = __format__ = lambda s, *o: 2\n"
        "def f(x): return Int(7)",
        "gave 7",
    ),
    "a float, a text, a list that lie": (
        "class Text(str):\n    __eq__ = lambda s, o: True\n    __str__ = __repr__ = lambda s: '2'\n"
        "def f(x): return Text('7')",
        'gave "7"',
    ),
    "a list that lies": (
        "class List(list):\n    __iter__ = lambda s: iter([2])\n    __eq__ = lambda s, o: True\n"
        "def f(x): return List([7])",
        "gave [7]",
    ),
    "not a number": ("def f(x): return float('nan')", "gave NaN"),
    "infinity": ("def f(x): return float('inf')", "gave Infinity"),
    "a list in itself": ("def f(x):\n    a = []\n    a.append(a)\n    return a", "RecursionError"),
    "a deep list": ("def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a", "RecursionError"),
    "a generator": ("def f(x):\n    yield 2", "not built in"),
    "a function": ("def f(x): return f", "not built in"),
    "a text of the number": ("def f(x): return '2'", 'gave "2"'),
    "a list of the number": ("def f(x): return [2]", "gave [2]"),
    "nothing": ("def f(x): pass", "gave null"),
    "no function": ("g = 2", "f is not defined"),
    "not a function": ("f = 2", "TypeError"),
    "patches the driver": (
        """
import posix, builtins
builtins.type = builtins.isinstance = lambda *a: True
posix.write = posix._exit = lambda *a: 0
def f(x): return 7
""",
        "",
    ),
    "exit handlers and hooks": (
        "import atexit, sys, os\natexit.register(os._exit, 0)\nsys.excepthook = lambda *a: os._exit(0)\n"
        "def f(x): 1 / 0",
        "ZeroDivisionError",
    ),
    "an error whose text cannot be shown": (
        "class Odd(Exception):\n    __str__ = lambda s: 1 / 0\ndef f(x): raise Odd()",
        "Odd",
    ),
    "writes to every descriptor": (
        """
import os
def f(x):
    for place in range(64):
        try: os.write(place, b"0 0 0 2 0 0\\nV7" * 100)
        except OSError: pass
    for name in os.listdir("/proc/1/fd"):
        try:
            with open(f"/proc/1/fd/{name}", "r+b", buffering=0) as file:
                file.write(b"9" * 5000 + b"\\n-1 -1 -1 99999999999999999999 -5 x\\n")
        except OSError: pass
    os._exit(0)
""",
        "",
    ),
    "two answers": ("import os\ndef f(x):\n    os.fork()\n    return 2 if False else 3", ""),
}

# Each returns the list of what it could do that it must not. Right only if that is nothing.
PROBES = {
    "writing outside of /tmp": """
import os
def f():
    done = []
    for folder in ("/", "/usr", "/usr/bin", "/usr/lib", "/dev", "/proc", "/bin", "/proc/sys/kernel"):
        try:
            with open(os.path.join(folder, "aepo-probe"), "w"): done.append(folder)
        except OSError: pass
    return done
""",
    "reading files of the machine": """
import os
def f():
    paths = ["/etc/passwd", "/etc/shadow", "/root", "/home", "/var", "/work", "/opt", "/srv", "/etc/hosts", "/run"]
    return [path for path in paths if os.path.exists(path)]
""",
    "the parent's environment": """
import os
def f():
    names = [name for name in os.environ if name not in ("PYTHONHASHSEED", "PWD", "LC_CTYPE")]
    for process in filter(str.isdigit, os.listdir("/proc")):
        try: data = open(f"/proc/{process}/environ", "rb").read()
        except OSError: continue
        names += [part.decode() for part in data.split(b"\\0")
                  if part and not part.startswith((b"PYTHONHASHSEED=", b"PWD=", b"LC_CTYPE="))]
    return names
""",
    "other processes": """
import os
def f():
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getpid()}
    return sorted(others)
""",
    "the network": """
import socket
def f():
    done = []
    for address in (("1.1.1.1", 53), ("127.0.0.1", PORT), ("::1", PORT)):
        try:
            socket.create_connection(address, timeout=3)
            done.append(str(address))
        except OSError: pass
    try: done.append(str(socket.getaddrinfo("example.org", 80)))
    except OSError: pass
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("\\0" + NAME)
            done.append("abstract socket")
    except OSError: pass
    return done
""",
    "new namespaces and mounts": """
import ctypes, os
def f():
    libc, done = ctypes.CDLL(None, use_errno=True), []
    for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000):
        if libc.unshare(flag) == 0: done.append(flag)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0: done.append("mount")
    if libc.umount2(b"/tmp", 2) == 0: done.append("umount")
    if libc.chroot(b"/tmp") == 0: done.append("chroot")
    for call in (os.setuid, os.setgid):
        try: call(0); done.append(call.__name__)
        except OSError: pass
    return done
""",
    "a terminal": """
import fcntl, os
def f():
    done = []
    for place in (0, 1, 2):
        try: fcntl.ioctl(place, 0x5412, b"x"); done.append(place)
        except OSError: pass
    try: os.open("/dev/tty", os.O_RDWR); done.append("tty")
    except OSError: pass
    return done
""",
    "higher limits": """
import resource
def f():
    done = []
    for name in ("NPROC", "AS", "CPU", "FSIZE", "NOFILE", "CORE"):
        which = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(which)[1]
        if hard == resource.RLIM_INFINITY: done.append(name + " has no limit")
        try: resource.setrlimit(which, (hard, hard + 1)); done.append(name)
        except (OSError, ValueError): pass
    return done
""",
    "shared memory that outlives a process": """
import ctypes
def f():
    libc = ctypes.CDLL(None, use_errno=True)
    return ["shmget"] if libc.shmget(0, 2**28, 0o1600) >= 0 else []
""",
    "tracing the driver": """
import ctypes
def f():
    libc = ctypes.CDLL(None, use_errno=True)
    return ["ptrace"] if libc.ptrace(16, 1, None, None) == 0 else []
""",
    "killing the driver and all else": """
import os, signal
def f():
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP, signal.SIGINT):
        for process in (1, os.getppid(), -1):
            try: os.kill(process, number)
            except OSError: pass
    return []
""",
    "filling /tmp and /dev/shm": """
import os
def f():
    for folder in ("/tmp", "/dev/shm"):
        size = 0
        try:
            for number in range(10**4):
                with open(f"{folder}/{number}", "wb") as file: size += file.write(b"x" * 10**6)
        except OSError: pass
        if size > 20e6: return [folder]
    return []
""",
    "a large file": """
def f():
    try:
        with open("/tmp/large", "wb") as file:
            for _ in range(64): file.write(b"x" * 2**17)
    except OSError: return []
    return ["eight MiB"]
""",
    "twelve processes": """
import os, time
def f():
    children = 0
    try:
        for _ in range(12):
            if os.fork() == 0:
                try: bytearray(2**28)
                finally: time.sleep(60)
            children += 1
    except OSError: pass
    return ["twelve"] if children == 12 else []
""",
    "a daemon that holds the output": """
import os, time
def f():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return []
""",
    "frames that hold the expected value": """
import gc, sys
def f():
    needle, frame = "".join(reversed("5463728191")), sys._getframe().f_back
    while frame:
        if needle in repr(frame.f_locals) + repr(frame.f_code.co_consts): return ["frame"]
        frame = frame.f_back
    try:
        maps = open("/proc/1/maps").read().splitlines()
        with open("/proc/1/mem", "rb", 0) as memory:
            for line in maps:
                start, end = (int(part, 16) for part in line.split()[0].split("-"))
                if " rw" not in line: continue
                memory.seek(start)
                if needle.encode() in memory.read(end - start): return ["memory"]
    except OSError: pass
    return []
""",
}

# They wait for ever: no verdict.
WAITING = {
    "endless sleep": "import time\ndef f(x): time.sleep(10**6)",
    "stops itself": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "a thread that never ends": "import threading\ndef f(x): threading.Event().wait()",
}
