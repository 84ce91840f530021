/* unflushed PROGRAM [ARG...]: runs a program whose fsync, fdatasync, syncfs, sync and sync_file_range succeed and do nothing, which
 * is what a power-cut test must be able to notice. seccomp(2): an action of SECCOMP_RET_ERRNO with error 0 skips the call. */
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SKIP(call) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO)

int main(int count, char **arguments)
{
	struct sock_filter rules[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		SKIP(__NR_fsync), SKIP(__NR_fdatasync), SKIP(__NR_syncfs), SKIP(__NR_sync), SKIP(__NR_sync_file_range),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof(rules) / sizeof(rules[0]), rules };
	if (count < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		return 1;
	execv(arguments[1], arguments + 1);
	return 1;
}
