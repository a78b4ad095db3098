"""Answers that their evidence supports, and planted errors that it does not."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.answer.prompt import count
from stages.core.records import Evidence
from stages.crawl.extract import extract
from stages.crawl.site import Site
from stages.llm import outline
from stages.synthesize import grounding

ROOT = Path(__file__).parent.parent
PYTHON_DOC = Path("/usr/share/doc/python3-doc/html/library")
TITLES = ("Docent", "Python")
"""What the reader of a free-form pair is told beside it: whose manual it is."""

Pair = tuple[str, str, str, str]
"""Page, question, answer and evidence."""


# --- right pairs -------------------------------------------------------------------------------


def sections(title: str, text: str) -> Iterable[tuple[tuple[str, ...], str]]:
    """The headings above each section, and its text."""
    starts = [m.start() for m in re.finditer(r"(?m)^#{1,3} ", text)]
    path: list[str] = []
    for start, end in zip(starts, [*starts[1:], len(text)], strict=True):
        heading = re.match(r"(#+) (.+)", text[start:end])
        assert heading
        path = [*path[: len(heading[1]) - 1], heading[2].replace("`", "")]
        yield tuple(path), text[start:end]


def written(page: str, title: str, text: str) -> Iterable[Pair]:
    """What the outline teacher writes about a page."""
    for path, part in sections(title, text):
        for fact in outline.write(outline.Page(title, path, "", part)):
            if fact.kind != "dialogue":
                yield page, fact.forms[0], fact.answer, fact.evidence


def of_this_manual() -> list[Pair]:
    pairs: list[Pair] = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        text = path.read_text()
        title = re.match(r"# (.+)", text)
        pairs += written(path.name, title[1] if title else path.stem, text)
    return pairs


def of_pythons_manual() -> list[Pair]:
    pairs: list[Pair] = []
    for path in sorted(PYTHON_DOC.glob("*.html"))[::8]:
        url = f"https://docs.python.org/3/library/{path.name}"
        page = extract(path.read_text(), url, Site.around("https://docs.python.org/3/", None))
        pairs += written(path.name, page.title, page.text)
    return pairs


# Paraphrased, as language models answer: texts of this manual, of Python's and of others.
PARAPHRASED = [
    (
        "How do I train with two processes?",
        "Set `finetune.num_processes` to 2: run `python -m stages run "
        "finetune.num_processes=2`, and torchrun will start both processes.",
        "To train with two processes:\n\n```bash\npython -m stages run "
        "finetune.num_processes=2\n```\n\nThe processes are started by torchrun. On a machine "
        "with GPUs, give each GPU one process.",
    ),
    (
        "When should I use DeepSpeed?",
        "Use DeepSpeed if the model plus its optimizer is too big for a single GPU's memory. "
        "With a small model you would just lose time.",
        "DeepSpeed is worth it when a model with its optimizer does not fit into the memory of "
        "one GPU; for a small model it only costs time.",
    ),
    (
        "What does ZeRO stage 2 distribute across processes?",
        "With `zero2`, both the gradients and the optimizer states are spread over the processes.",
        "| `zero2` | The states of the optimizer and the gradients. |",
    ),
    (
        "Do several CPU processes speed up training?",
        "No, they rarely do. Their purpose is to show that a distributed configuration works "
        "before you pay for a GPU host.",
        "Several processes on a CPU show that a distributed setting works before a GPU host is "
        "paid for; they seldom make training faster.",
    ),
    (
        "Why is the first start with DeepSpeed slow on a CPU?",
        "Because a small library has to be compiled with g++ first. That takes around a "
        "minute, and the result is kept.",
        "At the first start with DeepSpeed on a CPU a small library is compiled with g++, "
        "which takes about a minute and is kept.",
    ),
    (
        "How can I keep the global batch size constant when I use more processes?",
        "If you double the number of processes, cut the accumulation steps in half.",
        "To keep the global batch equal, halve the accumulation steps when you double the "
        "processes.",
    ),
    (
        "Can Docent read pages that are rendered in the browser?",
        "No. Docent only reads the HTML sent by the server and does not execute JavaScript, so "
        "such pages end up empty.",
        "Docent reads HTML pages that a server sends; it runs no JavaScript, so that a page "
        "which is drawn in the browser comes out empty.",
    ),
    (
        "Is the embedded server suitable for production with many users?",
        "It is not meant for that: the embedded server is for testing, demos and evaluation on "
        "a single machine. For many simultaneous users, the real TGI should be used.",
        "The embedded server is made for tests, demos and evaluation on one machine; use the "
        "real TGI for many users at once.",
    ),
    (
        "Does the embedded server support encryption?",
        "No, the server offers neither encryption nor user accounts. Put a reverse proxy with "
        "TLS and a login in front of it if others need access.",
        "The server has no accounts and no encryption. To give others access, put a reverse "
        "proxy with TLS and a login in front of it.",
    ),
    (
        "Which address does the embedded server listen on?",
        "By default it listens on `127.0.0.1`, which means that it can only be reached by "
        "users on the same machine.",
        "The embedded server and the page of MLflow listen on `127.0.0.1` unless told "
        "otherwise, so that only users of the same machine reach them.",
    ),
    (
        "Where should I put my OpenAI API key?",
        "In an environment variable, for example with `export OPENAI_API_KEY=…`. The settings "
        "only contain the variable's name and never the key itself.",
        "API keys come from environment variables only, and the settings name the variable, "
        "never the key.\n\nTo give the key of a teacher:\n\n```bash\nexport OPENAI_API_KEY=…\n"
        "python -m stages run teacher=openai\n```",
    ),
    (
        "What should I do if I committed a secret?",
        "Consider it compromised: revoke it at the service that issued it, create a new one, "
        "and store that in the environment.",
        "A secret that was committed is no secret any more: take it back at the service that "
        "gave it, make a new one and put it into the environment.",
    ),
    (
        "Which links does the crawler follow?",
        "It follows links to the start URL's host that lie below its folder and ignores all "
        "the others.",
        "A link is followed when it leads to the host of the start URL and below its folder; "
        "all other links are left alone.",
    ),
    (
        "When does the crawl end?",
        "The crawl stops once there are no new addresses left, or when it reaches "
        "`crawl.max_pages`.",
        "The crawl goes from the start page level by level. It ends when no new address is "
        "left or when `crawl.max_pages` is reached.",
    ),
    (
        "How large may a page be?",
        "At most 32 MiB; bigger pages are rejected with the reason `too_large`.",
        "| `too_large` | The page is larger than 32 MiB. |",
    ),
    (
        "What happens if robots.txt can't be fetched because the server fails?",
        "In that case everything on the site is forbidden. Only a site that simply has no such "
        "file allows everything.",
        "A site without the file allows everything; a site whose server fails to give it "
        "forbids everything. With `crawl.obey_robots=false` the file is ignored, which is "
        "right for a site of your own only.",
    ),
    (
        "How do I ignore robots.txt?",
        "Set `crawl.obey_robots=false`. You should do this only for your own site.",
        "With `crawl.obey_robots=false` the file is ignored, which is right for a site of your "
        "own only.",
    ),
    (
        "Can I set both source.serve_dir and source.url?",
        "No, you may set just one of the two: either `source.serve_dir` or `source.url`.",
        "The folder must hold an `index.html`, and `source.public_url` must be set. Set either "
        "`source.serve_dir` or `source.url`, never both.",
    ),
    (
        "How do I start the server on port 9000?",
        "Run `python -m stages up --port 9000`. The command returns as soon as the server is "
        "ready, while the server keeps running.",
        "To start the server on another port:\n\n```bash\npython -m stages up --port 9000\n"
        "```\n\nThe command returns when the server is ready, and the server goes on running.",
    ),
    (
        "Why are the base and the tuned model both served?",
        "They are served next to each other so that both can be asked the same way and then "
        "compared.",
        "The base and the tuned model are served side by side, so that they are asked in the "
        "same way and can be compared.",
    ),
    (
        "Does the embedded server need a GPU?",
        "It doesn't need one. It uses a GPU if there is one and falls back to the CPU, and it "
        "requires only the model environment.",
        "It runs on a GPU where there is one, else on the CPU, and needs nothing but the model "
        "environment. Its answers are greedy unless a request asks for sampling.",
    ),
    (
        "What can the outline teacher not do?",
        "The outline teacher is unable to ask about facts in the middle of paragraphs, to "
        "combine two pages, or to judge answers.",
        "It cannot ask about a fact that stands in the middle of a paragraph, combine two "
        "pages, or judge an answer. A language model as the teacher can.",
    ),
    (
        "How reliable is the interval with about 30 questions?",
        "It is rough: an interval that is supposed to hold in 95 out of 100 cases then holds "
        "in roughly 93.",
        "With few pages even these are rough: around 30 questions an interval that should hold "
        "95 times of 100 holds about 93 times, and on comparisons where most answers are equal "
        "fewer.",
    ),
    (
        "What does the crawler do with 1,000 pages reached?",
        "The crawl stops there. To go further, increase `crawl.max_pages`.",
        "| The crawl stops at 1,000 pages. | Raise `crawl.max_pages`. |",
    ),
    (
        "The teacher keeps answering with status 429. What can I do?",
        "Reduce `teacher.concurrency`.",
        "| The teacher answers 429 again and again. | Lower `teacher.concurrency`. |",
    ),
    (
        "Which platforms has Docent been tested on?",
        "It has been tested on Linux using Python 3.11 and x86-64 processors, without GPUs.",
        "Docent is tested on Linux with Python 3.11 on x86-64 processors without a GPU.",
    ),
    (
        "How many reasons for a wrong installation are listed, and what if CUDA libraries are "
        "downloaded?",
        "Request the CPU build with `make setup TORCH_BACKEND=cpu`, so that no gigabytes of "
        "CUDA libraries are downloaded.",
        "| The setup downloads gigabytes of CUDA libraries. | Ask for the CPU build: `make "
        "setup TORCH_BACKEND=cpu`. |",
    ),
    (
        "Do I need a vector database?",
        "No. A vector database is not part of this version; use the index in `data/index/` "
        "instead.",
        "The following is planned and is not part of this version; nothing else in this manual "
        "depends on it.\n\n| missing feature | what to do meanwhile |\n|---|---|\n| A vector "
        "database | Use the index in `data/index/`. |",
    ),
    (
        "In which order does a LifoQueue return its entries?",
        "A LIFO queue behaves like a stack: the entry that was added last is retrieved first.",
        "In a FIFO queue, the first tasks added are the first retrieved. In a LIFO queue, the "
        "most recently added entry is the first retrieved (operating like a stack).",
    ),
    (
        "What happens if maxsize of a queue.Queue is 0 or negative?",
        "Then the size of the queue is unlimited (infinite).",
        "If *maxsize* is less than or equal to zero, the queue size is infinite.",
    ),
    (
        "How many types of queue does the queue module implement?",
        "It implements three types: FIFO, LIFO and priority queues. They differ only in the "
        "order in which entries are retrieved.",
        "The module implements three types of queue, which differ only in the order in which "
        "the entries are retrieved. In a FIFO queue, the first tasks added are the first "
        "retrieved. In a LIFO queue, the most recently added entry is the first retrieved "
        "(operating like a stack). With a priority queue, the entries are kept sorted (using "
        "the [`heapq`](https://docs.python.org/3/library/heapq.html#module-heapq) module) and "
        "the lowest valued entry is retrieved first.",
    ),
    (
        "Can I use signals to communicate between Python threads?",
        "No, you can't. Signal handlers always run in the main Python thread of the main "
        "interpreter, even when another thread received the signal. Use the synchronization "
        "primitives of the `threading` module instead.",
        "Python signal handlers are always executed in the main Python thread of the main "
        "interpreter, even if the signal was received in another thread. This means that "
        "signals can’t be used as a means of inter-thread communication. You can use the "
        "synchronization primitives from the "
        "[`threading`](https://docs.python.org/3/library/threading.html#module-threading) "
        "module instead.",
    ),
    (
        "What does heappop() do on an empty heap?",
        "It raises an `IndexError`.",
        "Pop and return the smallest item from the *heap*, maintaining the heap invariant. If "
        "the heap is empty, [`IndexError`](http://h/exceptions.html#IndexError) is raised.",
    ),
    (
        "How can I look at the smallest item of a heap without removing it?",
        "Access `heap[0]`; that is the smallest item, and it stays in the heap.",
        "If the heap is empty, [`IndexError`](http://h/exceptions.html#IndexError) is raised. "
        "To access the smallest item without popping it, use `heap[0]`.",
    ),
    (
        "When is a file made by TemporaryFile deleted?",
        "As soon as it is closed, which includes the implicit close when the object is garbage "
        "collected.",
        "It will be destroyed as soon as it is closed (including an implicit close when the "
        "object is garbage collected).",
    ),
    (
        "Which thread may install a new signal handler in Python?",
        "Only the main interpreter's main thread is permitted to set a new signal handler.",
        "Besides, only the main thread of the main interpreter is allowed to set a new signal "
        "handler.",
    ),
    (
        "Do mkstemp() and mkdtemp() clean up automatically?",
        "No, they are lower-level functions, so you have to clean up manually.",
        "[`mkstemp()`](https://docs.python.org/3/library/x.html#tempfile.mkstemp) and "
        "[`mkdtemp()`](https://docs.python.org/3/library/x.html#tempfile.mkdtemp) are "
        "lower-level functions which require manual cleanup.",
    ),
    (
        "How long are sessions valid?",
        "A session expires after half an hour without activity, and in any case after 12 hours.",
        "Sessions expire after 30 minutes of inactivity. Regardless of activity, a session is "
        "valid for at most 12 hours.",
    ),
    (
        "What is the retry policy?",
        "Failed requests are retried up to five times with exponential backoff, starting at "
        "200 ms. Requests that return a 4xx status aren't retried.",
        "The client retries failed requests at most five times. The delay starts at 200 "
        "milliseconds and doubles with each attempt. Responses with a 4xx status are never "
        "retried.",
    ),
    (
        "Which Node.js version do I need?",
        "You need Node.js 18.17 or newer; version 16 is no longer supported.",
        "Node.js 18.17 or later is required. Support for version 16 was removed.",
    ),
    (
        "How do I enable verbose logging?",
        "Pass `--verbose` on the command line, or set `log_level: debug` in `config.yaml`.",
        "Verbose logging can be switched on with the `--verbose` flag or by putting "
        "`log_level: debug` into `config.yaml`.",
    ),
    (
        "How much memory does the importer need?",
        "Plan for at least 4 GB of RAM, or 8 GB when importing archives bigger than 1 GB.",
        "The importer requires a minimum of 4 GB RAM. For archives above 1 GB, 8 GB are "
        "recommended.",
    ),
    (
        "Are backups encrypted?",
        "Yes. All backups are encrypted with AES-256 before they leave the server.",
        "Every backup is encrypted using AES-256 before it is uploaded from the server.",
    ),
    (
        "What discount do annual plans get?",
        "Annual plans are 20% cheaper than paying monthly.",
        "If you pay annually, you get a 20 percent discount compared to monthly billing.",
    ),
    (
        "Why does Docent's search sometimes find nothing?",
        "Search only matches words, so a question phrased differently from the page won't find "
        "anything, even if the meaning is identical.",
        "Search matches words: a question in other words than the page's finds nothing, even "
        "when it means the same.",
    ),
    (
        "Is retrieval better than tuning?",
        "In most published comparisons retrieval is the stronger baseline, so you should tune "
        "only if the table shows a gain for your own documents.",
        "Retrieval is the stronger baseline in most published comparisons. Tune because the "
        "table shows a gain for your documents, not because tuning sounds better than search.",
    ),
    (
        "What may a tuned model reveal?",
        "It can reproduce sentences from its training data verbatim. A model trained on "
        "confidential pages must therefore be treated as just as confidential.",
        "A tuned model may repeat sentences of its training data word for word, so that a "
        "model made from confidential pages is as confidential as the pages.",
    ),
    (
        "How large may a site be?",
        "A few thousand pages are no problem, but several hundred thousand are too many, since "
        "some stages keep all pages in memory.",
        "The pages of a site are held in memory by some stages, so that a few thousand pages "
        "are fine and a few hundred thousand are not.",
    ),
    (
        "What is endpoint.json for?",
        "`data/deploy/endpoint.json` describes the endpoint. It contains no port, process id "
        "or absolute path, which makes it valid on any machine.",
        "The file `data/deploy/endpoint.json` describes the endpoint without a port, a process "
        "id or an absolute path, so that it means the same on every machine.",
    ),
    (
        "How do I stop DVC's version check?",
        "Disable it with `dvc config core.check_update false`.",
        "To stop DVC from asking about new versions:\n\n```bash\ndvc config core.check_update "
        "false\n```",
    ),
    (
        "What happens when a page has no main element?",
        "Docent then uses trafilatura to locate the body by its text, so plain blog pages can "
        "be read too.",
        "When a page names no main element, trafilatura finds the body by its text, so that a "
        "plain blog page is read as well.",
    ),
    (
        "Do ROUGE scores from different test sets compare?",
        "Hardly: ROUGE counts the words shared with a single reference, so scores can only be "
        "compared within the same test set.",
        "ROUGE scores measure shared words with one reference, so that they are comparable "
        "within one test set and mean little across different ones.",
    ),
    (
        "What does the key source.public_url do?",
        "It holds the address at which readers find the pages. Citations point to it rather "
        "than to the server that was crawled.",
        "The key `source.public_url` is the address under which readers find the pages; "
        "citations lead there and not to the server that was crawled.",
    ),
    (
        "Are the queue module's queues reentrant?",
        "No. They use locks to block competing threads temporarily, but they aren't designed "
        "for reentrancy within one thread.",
        "Internally, those three types of queues use locks to temporarily block competing "
        "threads; however, they are not designed to handle reentrancy within a thread.",
    ),
    (
        "What does heapq.merge return?",
        "It returns an iterator over the sorted values. Unlike `sorted`, it doesn't load all "
        "the data into memory at once, and it expects every input stream to be sorted already.",
        "Merge multiple sorted inputs into a single sorted output (for example, merge "
        "timestamped entries from multiple log files). Returns an "
        "[iterator](http://h/glossary.html#term-iterator) over the sorted values.\n\nSimilar "
        "to `sorted(itertools.chain(*iterables))` but returns an iterable, does not pull the "
        "data into memory all at once, and assumes that each of the input streams is already "
        "sorted (smallest to largest).",
    ),
    (
        "When does Queue.put() block?",
        "Inserting blocks once `maxsize` items are in the queue, and it continues when items "
        "have been consumed.",
        "*maxsize* is an integer that sets the upperbound limit on the number of items that "
        "can be placed in the queue. Insertion will block once this size has been reached, "
        "until queue items are consumed.",
    ),
    (
        "Since when has SimpleQueue existed?",
        "`SimpleQueue` was added in Python 3.7.",
        "`class queue.SimpleQueue`\n\nConstructor for an unbounded FIFO queue. Simple queues "
        "lack advanced functionality such as task tracking.\n\nNew in version 3.7.",
    ),
    (
        "What limits the webhook payload?",
        "Payloads must not exceed 256 KB. Anything larger is cut off and the field `truncated` "
        "is set to `true`.",
        "The payload of a webhook may have up to 256 KB. Larger payloads are truncated, and "
        "`truncated` is `true` in that case.",
    ),
    (
        "How do I roll back a deployment?",
        "Use `shipctl rollback --to <revision>`. You can go back by at most ten revisions.",
        "Roll back with `shipctl rollback --to REVISION`. The last ten revisions are kept.",
    ),
    (
        "Who can delete a workspace?",
        "Only owners can delete a workspace; admins and members can't.",
        "A workspace can be deleted by its owners only. Admins and members do not have this "
        "permission.",
    ),
    (
        "Does the free plan include SSO?",
        "No, single sign-on is only available in the Enterprise plan.",
        "Single sign-on (SSO) is part of the Enterprise plan and not of the free and team plans.",
    ),
    (
        "How often are metrics collected?",
        "Every 15 seconds by default; you can change this with `scrape_interval`.",
        "By default, metrics are scraped every 15s (`scrape_interval`).",
    ),
    (
        "Should the cache be cleared after an upgrade?",
        "Yes, run `app cache:clear` after every upgrade, otherwise stale templates may be shown.",
        "After each upgrade, clear the cache with `app cache:clear`. If you do not, old "
        "templates may still be displayed.",
    ),
    (
        "Which port does the database use?",
        "PostgreSQL listens on port 5432 unless you change it.",
        "The default port of PostgreSQL is 5432; it can be changed in `postgresql.conf`.",
    ),
    (
        "How do I undo the last migration?",
        "Execute `migrate down 1`; this reverts only the most recent migration.",
        "To revert the most recent migration only, run `migrate down 1`.",
    ),
    (
        "Can I rename a project later?",
        "Yes, project names can be changed at any time in the settings. URLs keep working "
        "because old names are redirected.",
        "A project can be renamed at any time under Settings. Old names redirect to the new "
        "one, so that existing URLs keep working.",
    ),
    (
        "What is the maximum number of collaborators?",
        "A repository can have up to fifty collaborators. If you need more, contact the sales "
        "team.",
        "Repositories are limited to fifty collaborators. Contact sales to raise this limit.",
    ),
    (
        "What happens to messages that can't be delivered?",
        "After three failed attempts a message is moved to the dead-letter queue, where it "
        "stays for 14 days.",
        "A message whose delivery fails three times goes to the dead-letter queue and is kept "
        "there for 14 days.",
    ),
    (
        "Which file formats can be imported?",
        "You can import CSV, JSON and Parquet files. Excel files have to be converted to CSV "
        "beforehand.",
        "Supported import formats are CSV, JSON and Parquet. Convert Excel files to CSV first.",
    ),
    (
        "Does the linter change my files?",
        "Not by default. It only reports problems; files are changed only when you add `--fix`.",
        "The linter reports problems and leaves files as they are. With `--fix` it repairs "
        "what it can.",
    ),
    (
        "What does the timeout option do?",
        "The `timeout` option limits how long the client waits for a response; the default is "
        "30 seconds and 0 disables the limit.",
        "`timeout`: seconds that the client waits for an answer. Default: 30. A value of 0 "
        "turns the limit off.",
    ),
    (
        "When are logs rotated?",
        "Logs are rotated daily at midnight or as soon as a file grows beyond 100 MB, "
        "whichever happens first.",
        "Log files are rotated every day at midnight, or earlier when they exceed 100 MB.",
    ),
    (
        "How do I install the CLI on macOS?",
        "Install it with Homebrew: `brew install acme/tap/acme`. On Apple silicon, no extra "
        "steps are needed.",
        "On macOS, use Homebrew: `brew install acme/tap/acme`. The package also works on Apple "
        "silicon without further steps.",
    ),
    (
        "Why was my API request rejected with 413?",
        "Status 413 means that the request body is too large. Keep the body below 10 MB or use "
        "the upload endpoint.",
        "413: the body of the request is larger than 10 MB. Send less, or use the upload endpoint.",
    ),
    (
        "Is the order of results guaranteed?",
        "No, results come back in no particular order unless you specify `sort`.",
        "The order of the results is undefined unless `sort` is given.",
    ),
    (
        "How do tokens expire?",
        "Access tokens expire after 15 minutes, whereas refresh tokens remain valid for 30 "
        "days and can be used only once.",
        "An access token is valid for 15 minutes. A refresh token is valid for 30 days and "
        "works once.",
    ),
    (
        "What is a namespace?",
        "A namespace is a group of resources that are isolated from the resources of other "
        "namespaces.",
        "**Namespace**: a group of resources, isolated from those in other namespaces.",
    ),
    (
        "What does `git stash` do?",
        "It saves your uncommitted changes away and gives you back a clean working directory "
        "matching HEAD.",
        "`git stash` records the current state of the working directory and the index and goes "
        "back to a clean working directory. The command saves your local modifications away "
        "and reverts the working directory to match the HEAD commit.",
    ),
    (
        "How can I avoid cold starts?",
        "Set `min_instances` to 1 or higher so that at least one instance always stays warm.",
        "Cold starts are avoided by keeping instances warm: `min_instances` must be at least 1.",
    ),
    (
        "Are failed payments retried?",
        "Yes, a failed payment is retried twice: after three days and again after five.",
        "When a payment fails, we try again after three days and after five days.",
    ),
    (
        "Which browsers are supported?",
        "The last two versions of Chrome, Firefox, Safari and Edge are supported. Internet "
        "Explorer isn't.",
        "We support the two latest versions of Chrome, Firefox, Safari and Edge. Internet "
        "Explorer is not supported.",
    ),
    (
        "Can guests create channels?",
        "Guests can't create channels; they can only join the ones they've been invited to.",
        "Guests may join channels to which they are invited. They may not create channels.",
    ),
    (
        "What does a yellow status light mean?",
        "Yellow means that the device is connected, but has not been registered yet.",
        "| yellow | Connected, not yet registered |",
    ),
    (
        "How do I pin a dependency?",
        "Write the exact version after two equals signs, for instance `requests==2.31.0`, in "
        "`requirements.txt`.",
        "A dependency is pinned in `requirements.txt` with `==` and its exact version, such as "
        "`requests==2.31.0`.",
    ),
    (
        "How do I cite a page of the manual with search?",
        "Run the search with `--json`; each row then gives you the score, the span and the "
        "text of a chunk.",
        "To get search results as JSON, one row with score, span and text for each chunk:\n\n"
        '```bash\npython -m stages search "your question" --json\n```',
    ),
    (
        "How does the crawl treat links to fragments?",
        "Everything after `#` in a link is dropped. As a result, each page is fetched only once.",
        "The part of a link after `#` is dropped, so that a page is fetched once.",
    ),
    (
        "How do headings keep their anchors?",
        "For every heading, Docent stores the level, the title, the anchor and the byte at "
        "which it starts. That way citations can point to the section.",
        "Each heading of a document is stored with its level, its title, its anchor and the "
        "byte where it begins, so that a citation can name the section.",
    ),
    (
        "Why doesn't deploy start a lasting server?",
        "Because a pipeline stage has to end. `deploy` therefore only proves and describes the "
        "endpoint, while `up`, `down` and `status` run the server.",
        "A stage of a pipeline must end, so that `deploy` proves and describes, and the verbs "
        "`up`, `down` and `status` run the server.",
    ),
    (
        "How do I change the admin password?",
        "Open the user menu, choose “Security” and enter the new password twice. You'll be "
        "signed out of all other sessions.",
        "To change the password of the administrator, go to Security in the user menu and type "
        "the new password two times. All other sessions are signed out.",
    ),
    (
        "What is the largest upload?",
        "Uploads are limited to 2 GB per file.",
        "A single file may be up to 2 GB large.",
    ),
    (
        "Can rules be nested?",
        "Yes, rules may be nested up to three levels deep.",
        "Rules can contain other rules, to a depth of three levels.",
    ),
    (
        "What happens if the license expires?",
        "When the license runs out, the server switches to read-only mode; no data is deleted.",
        "After the license has expired, the server is read-only. Data are not deleted.",
    ),
    (
        "Which regions are available?",
        "Currently there are four regions: Frankfurt, Dublin, Ohio and Tokyo.",
        "Regions: Frankfurt, Dublin, Ohio, Tokyo.",
    ),
    (
        "How is the total computed?",
        "The total is the sum of all line items minus the discount, with taxes added afterwards.",
        "Total = sum of the line items - discount + taxes.",
    ),
    (
        "Do I have to restart after editing the config?",
        "No, changes to `app.toml` are picked up automatically within ten seconds.",
        "The server watches `app.toml` and applies changes within 10 seconds, without a restart.",
    ),
    (
        "How do I delete a branch remotely?",
        "Use `git push origin --delete <branch>`.",
        "To delete a remote branch: `git push origin --delete BRANCH`.",
    ),
    (
        "Why is the build slow?",
        "Most of the time goes into compiling assets. Caching `node_modules` usually cuts the "
        "build time in half.",
        "Builds spend most of their time compiling assets. With `node_modules` cached, they "
        "take about half as long.",
    ),
    (
        "Is Windows supported?",
        "Windows isn't supported natively, but you can use WSL 2.",
        "There is no native support for Windows; use WSL 2 instead.",
    ),
    (
        "What does exit code 2 mean?",
        "Exit code 2 indicates that the command line arguments were invalid.",
        "2: invalid arguments on the command line",
    ),
    (
        "How often is the index rebuilt?",
        "It's rebuilt nightly, and additionally whenever you call `reindex`.",
        "The index is rebuilt every night and after each call of `reindex`.",
    ),
    (
        "Which Python versions work?",
        "Python 3.9 through 3.12 are supported; 3.8 reached its end of life and was dropped.",
        "Supported versions of Python: 3.9 to 3.12. Version 3.8 is no longer supported since "
        "its end of life.",
    ),
    (
        "How do I mute notifications?",
        "Click the bell icon and select “Mute”. Notifications stay off until you turn them on "
        "again.",
        "Select Mute under the bell icon. You get no notifications until you switch them on again.",
    ),
    (
        "What is the SLA?",
        "The service guarantees 99.9% availability per month; otherwise you receive a credit "
        "of 10%.",
        "We guarantee a monthly availability of 99.9 %. If it is not reached, 10 % are credited.",
    ),
    (
        "Who may approve a merge request?",
        "Any maintainer other than the author can approve it.",
        "A merge request is approved by a maintainer who is not its author.",
    ),
    (
        "Is the order of hooks important?",
        "Yes, since hooks run in the order in which they're listed.",
        "Hooks are executed in the order of the list.",
    ),
    (
        "How are passwords stored?",
        "They are hashed with Argon2id and never stored in plain text.",
        "Passwords are stored as Argon2id hashes only.",
    ),
    (
        "When is a ticket closed?",
        "A ticket is closed automatically after 30 days without a reply.",
        "Tickets that get no reply for 30 days are closed.",
    ),
    (
        "What does the dry run do?",
        "With `--dry-run`, the tool shows the planned changes but doesn't apply them.",
        "`--dry-run`: print what would change, and change nothing.",
    ),
]


# --- wrong pairs -------------------------------------------------------------------------------

NUMBERS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
DIGITS = re.compile(r"(?<![\w.`/-])\d+(?:\.\d+)?(?![\w/-])")
NAMED = re.compile(
    r"(?<=[a-z,] )[A-Z][A-Za-z]+\b"
    r"|\b(?:Docent|MLflow|DVC|Hydra|Axolotl|OpenAI|Python|Docker|Markdown)\b"
)
TICKED = re.compile(r"`([^`]+)`")
SWAPS = (
    *(("before", "after"), ("at least", "at most"), ("always", "never")),
    *(("enables?", "disables"), ("enabled", "disabled"), ("allows?", "forbids")),
    *(("allowed", "forbidden"), ("minimum", "maximum"), ("first", "last"), ("with", "without")),
    *(("above", "below"), ("more", "fewer"), ("largest", "smallest"), ("longest", "shortest")),
    *(("includes?", "excludes"), ("after", "before"), ("without", "with"), ("unless", "if")),
    *(("raises?", "lowers"), ("never", "always"), ("at most", "at least")),
    *(("maximum", "minimum"), ("lower", "raise"), ("fewer", "more"), ("optional", "required")),
    *(("required", "optional"), ("below", "above"), ("local", "remote"), ("increases?", "lowers")),
)


def instead(answer: str, span: tuple[int, int], new: str) -> str:
    return answer[: span[0]] + new + answer[span[1] :]


def wrong_number(rng: random.Random, answer: str) -> list[str]:
    found = []
    for match in re.finditer(rf"\b(?:{'|'.join(NUMBERS)})\b", answer):
        found.append(instead(answer, match.span(), rng.choice(sorted({*NUMBERS} - {match[0]}))))
    for match in DIGITS.finditer(answer):
        value = float(match[0])
        new = rng.choice([value + 1, value * 10 + 3, value + rng.randrange(2, 30)])
        text = f"{new:.2f}".rstrip("0") if "." in match[0] else f"{new:.0f}"
        found.append(instead(answer, match.span(), text))
    return found


def denied(rng: random.Random, answer: str) -> list[str]:
    """A negation put in or left out, or a word turned into its opposite."""
    found = []
    aids = "is|are|can|must|may|will|was|were|should"
    for match in re.finditer(rf"\b(?:{aids})\b(?! not|n't|n’t)", answer):
        found.append(instead(answer, match.span(), f"{match[0]} not"))
    for match in re.finditer(rf"\b({aids}|do|does) not\b", answer):
        found += [instead(answer, match.span(), match[1])] * 2
    found += [instead(answer, m.span(), "can") for m in re.finditer(r"\bcannot\b", answer)]
    for match in re.finditer(r"\bno (?=[a-z])(?!longer)", answer):
        found.append(instead(answer, match.span(), rng.choice(["a ", "every ", "some "])))
    for one, other in SWAPS:
        found += [instead(answer, m.span(), other) for m in re.finditer(rf"\b{one}\b", answer)]
    return found


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def plant(pairs: Sequence[Pair], seed: int = 0) -> list[tuple[str, Pair]]:
    """Each pair as `right`, and of each sort of error one that it gives, if any."""
    rng = random.Random(seed)
    names = sorted({found for *_, answer, _ in pairs for found in NAMED.findall(answer)})
    codes = sorted({found for *_, answer, _ in pairs for found in TICKED.findall(answer)})

    def swapped(pattern: re.Pattern[str], pool: list[str], mark: str) -> Callable[[str], list[str]]:
        return lambda answer: [
            instead(answer, match.span(), f"{mark}{new}{mark}")
            for match in pattern.finditer(answer)
            if (new := rng.choice(pool)).lower().rstrip("s") not in match[0].lower()
        ]

    makers = {
        "number": lambda answer: wrong_number(rng, answer),
        "name": swapped(NAMED, names, ""),
        "code": swapped(TICKED, codes, "`"),
        "negation": lambda answer: denied(rng, answer),
    }
    planted: list[tuple[str, Pair]] = []
    for place, (page, question, answer, evidence) in enumerate(pairs):
        planted.append(("right", (page, question, answer, evidence)))
        for sort, make in makers.items():
            if found := make(answer):
                planted.append((sort, (page, question, rng.choice(found), evidence)))
        near = [row for row in pairs[max(0, place - 8) : place + 9] if row[0] == page]
        for sort, others in (("chunk", pairs), ("chunk near", near)):
            other = rng.choice(others)[3]
            if words(answer) not in words(other):
                planted.append((sort, (page, question, answer, other)))
    return planted


Table = dict[str, tuple[int, int]]
"""For each sort how many there were and how many of them were rejected."""


def judge(planted: Iterable[tuple[str, Pair]], context: Sequence[str] = ()) -> Table:
    total: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for sort, (_, question, answer, evidence) in planted:
        total[sort] += 1
        rejected[sort] += bool(grounding.faults(question, answer, [evidence], context))
    return {sort: (total[sort], rejected[sort]) for sort in sorted(total)}


def show(name: str, table: Table) -> None:
    print(f"\n{name:<22}{'pairs':>8}{'rejected':>10}{'share':>8}")
    for sort, (total, rejected) in table.items():
        print(f"{sort:<22}{total:>8}{rejected:>10}{rejected / total:>8.3f}")


def share(table: Table, sort: str) -> float:
    total, rejected = table[sort]
    return rejected / total


WRONG = ("number", "name", "code", "negation", "chunk")


def check(table: Table, caught: float, lost: float) -> None:
    assert share(table, "right") <= lost, table
    for sort in WRONG:
        assert share(table, sort) >= caught, (sort, table)
    assert share(table, "chunk near") >= caught - 0.03, table  # of the same page: like words


@pytest.fixture(scope="module")
def manual() -> list[tuple[str, Pair]]:
    return plant(of_this_manual())


def test_of_planted_errors_in_this_manual_95_percent_are_rejected(
    manual: list[tuple[str, Pair]],
) -> None:
    table = judge(manual)
    show("this manual", table)
    assert sum(total for sort, (total, _) in table.items() if sort != "right") >= 200
    check(table, caught=0.95, lost=0.05)


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON_DOC.exists(), reason="Debian's python3-doc is not installed")
def test_of_planted_errors_in_pythons_manual_95_percent_are_rejected() -> None:
    table = judge(plant(of_pythons_manual()))
    show("Python's manual", table)
    check(table, caught=0.95, lost=0.05)


def test_of_planted_errors_in_paraphrases_most_are_rejected() -> None:
    """Answers in words of their own: rules see less there, most of all of negations.

    The rules were made on these pairs; of new ones as many as a fifth were lost at first sight.
    """
    pairs = [(f"page {n}", *row) for n, row in enumerate(PARAPHRASED)]
    planted = [row for seed in range(4) for row in plant(pairs, seed) if row[0] != "chunk near"]
    table = judge(planted, TITLES)
    show("paraphrases", table)
    assert share(table, "right") <= 0.05, table
    floors = {"number": 0.95, "name": 0.9, "code": 0.95, "chunk": 0.95, "negation": 0.7}
    for sort, floor in floors.items():
        assert share(table, sort) >= floor, (sort, table)


@pytest.mark.parametrize(
    ("rule", "sort"),
    [
        ("numbers", "number"),
        ("names", "name"),
        ("code", "code"),
        ("negations", "negation"),
        ("opposites", "negation"),
        ("support", "chunk near"),
    ],
)
def test_a_check_without_one_of_its_rules_is_found_out(
    manual: list[tuple[str, Pair]], monkeypatch: pytest.MonkeyPatch, rule: str, sort: str
) -> None:
    left = {name: check for name, check in grounding.RULES.items() if name != rule}
    monkeypatch.setattr(grounding, "RULES", MappingProxyType(left))
    table = judge([row for row in manual if row[0] in ("right", sort)])
    assert share(table, sort) < 0.95, table


# --- single rules ------------------------------------------------------------------------------


def supported(answer: str, evidence: str, question: str = "What does the client do?") -> bool:
    return not grounding.faults(question, answer, [evidence])


@pytest.mark.parametrize(
    ("answer", "evidence", "right"),
    [
        ("The client waits for half a minute.", "The client waits for half a minute.", True),
        ("The client waits 2 minutes.", "The client waits 120 seconds.", True),
        ("The client waits 30 seconds.", "The client waits 30 minutes.", False),
        ("The client makes five attempts.", "The client makes 5 attempts.", True),
        ("The client makes five attempts.", "The client makes 6 attempts.", False),
        ("The client keeps 95% of it.", "The client keeps 95 percent of it.", True),
        ("The client keeps 95 % of it.", "The client keeps a share of 0.95 of it.", True),
        ("The client keeps 95% of it.", "The client keeps 59 percent of it.", False),
        ("The client needs version 3.10.", "The client needs version 3.1.", False),
        ("The client needs 3.11.2.", "The client needs Python 3.11.2.", True),
        ("The client sends -1.", "The client sends 1.", False),
        ("The client sends −1.", "The client sends -1.", True),
        ("The client sends 1,000 rows.", "The client sends 1000 rows.", True),
        ("The client sends 4 GB.", "The client sends 4 GiB.", False),
        ("The client starts 3 workers.", "The client starts 4 workers and 3 timers.", False),
        ("The client has three modes.", "The client has modes: quick, full and dry.", True),
        ("The client has four modes.", "The client has modes: quick, full and dry.", False),
    ],
)
def test_a_number_needs_its_value_its_unit_and_its_noun(
    answer: str, evidence: str, right: bool
) -> None:
    assert supported(answer, evidence) == right


@pytest.mark.parametrize(
    ("answer", "evidence", "right"),
    [
        ("The client never sends cookies.", "The client does not send cookies.", True),
        ("The client sends cookies.", "The client does not send cookies.", False),
        ("The client does not send cookies.", "The client sends cookies.", False),
        ("The client sends no cookies.", "The client does not send cookies.", True),
        ("The client runs without a cache.", "The client runs with a cache.", False),
        ("The client runs if a cache exists.", "The client runs unless a cache exists.", False),
        ("The client enables the cache.", "The client disables the cache.", False),
        ("The client is not allowed to write.", "The client is forbidden to write.", True),
        ("The client writes after it reads.", "The client writes before it reads.", False),
        ("The client sends at most 3 rows.", "The client sends at least 3 rows.", False),
        ("The client sends up to 3 rows.", "The client sends no more than 3 rows.", True),
        ("The client raises the limit.", "The client lowers the limit.", False),
        ("The client is unsupported on Windows.", "The client is not supported on Windows.", True),
    ],
)
def test_a_denied_or_opposite_statement_is_not_supported(
    answer: str, evidence: str, right: bool
) -> None:
    assert supported(answer, evidence) == right


@pytest.mark.parametrize(
    ("answer", "evidence", "right"),
    [
        ("The client reads `client.toml`.", "The client reads client.toml.", True),
        ("The client reads `client.yaml`.", "The client reads client.toml.", False),
        ("The client calls `send()` first.", "The client calls `send(row)` first.", True),
        ("The client takes `--port`.", "The client takes `--port-range`.", False),
        ("The client reads retry_limit.", "The client reads retry_limits.", False),
        (
            "Run `client run --port 80`.",
            "To run the client:\n\n```\nclient run --port 80\n```",
            True,
        ),
        (
            "Run `client run --port 81`.",
            "To run the client:\n\n```\nclient run --port 80\n```",
            False,
        ),
        ("The client asks Kafka first.", "The client asks Redis first.", False),
        ("Kafka keeps what the client asks.", "Redis keeps what the client asks.", False),
        ("The client asks redis first.", "The client asks Redis first.", True),
    ],
)
def test_names_and_identifiers_have_to_stand_in_the_evidence(
    answer: str, evidence: str, right: bool
) -> None:
    assert supported(answer, evidence) == right


def test_a_name_that_the_headings_give_is_known() -> None:
    answer, evidence = "Redis keeps the cache of a client.", "The cache of each client is kept."
    assert grounding.faults("What is kept?", answer, [evidence])[0].startswith("name Redis")
    assert not grounding.faults("What is kept?", answer, [evidence], ["Redis clients"])


def test_a_fault_says_what_is_wrong() -> None:
    found = grounding.faults(
        "How often does the client try?",
        "The client does not try 7 times with `--retry`, as Kafka does.",
        ["The client tries 3 times."],
    )
    assert found == [
        "number 7 is not in the evidence",
        "name Kafka is not in the evidence",
        "code identifier --retry is not in the evidence",
        "negation “not” is not in the evidence",
        "little of it is in the evidence: 1 of 4 words",
    ]


MARKS = "ab .,:;!?`*_|#()[]<>=+-−0123456789%eE\n'’“”é中"
TEXTS = st.lists(st.sampled_from([*MARKS, "not ", "no ", "Docent "]), max_size=60).map("".join)


@given(TEXTS, TEXTS, TEXTS)
def test_any_texts_can_be_compared_and_twice_alike(question: str, answer: str, said: str) -> None:
    first = grounding.faults(question, answer, [said])
    grounding.read.cache_clear()
    assert grounding.faults(question, answer, [said]) == first


SENTENCES = st.lists(
    st.sampled_from([answer for _, answer, _ in PARAPHRASED]), min_size=1, max_size=4, unique=True
)


@given(SENTENCES)
def test_what_the_evidence_says_word_by_word_has_no_wrong_items(said: list[str]) -> None:
    text = " ".join(said)
    for answer in said:
        found = grounding.faults("What is said?", answer, [text])
        assert not [f for f in found if f.startswith(("number", "name", "code", "little"))]


# --- spans -------------------------------------------------------------------------------------


def whole(text: str, start: int = 0) -> Evidence:
    return Evidence(document_id="d", start=start, end=start + len(text.encode()), text=text)


SPAN = """## Wie der Server läuft – über „up“

The server is started with `python -m stages up`. It listens on port 8000, and only users of the
same machine reach it. 日本語のページも読めます。

To stop the server:

```bash
python -m stages down
```

| key | meaning |
|---|---|
| `deploy.max_batch_size` | How many requests of one model are decoded together. |
| `deploy.device` | Where the models run; `auto` takes a GPU where there is one. |

The log is kept for seven days, and it holds no question and no answer of a user.
"""


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (
            "How do I stop the server?",
            "Run `python -m stages down`.",
            ["To stop the server:\n\n```bash\npython -m stages down\n```"],
        ),
        (
            "What does deploy.device set?",
            "Where the models run.",
            ["| `deploy.device` | Where the models run; `auto` takes a GPU where there is one. |"],
        ),
        (
            "How long is the log kept?",
            "For seven days.",
            ["The log is kept for seven days, and it holds no question and no answer of a user."],
        ),
        (
            "How is the server started, and where does it listen?",
            "Start it with `python -m stages up`; it listens on port 8000.",
            [
                "The server is started with `python -m stages up`. It listens on port 8000, and "
                "only users of the\nsame machine reach it."
            ],
        ),
    ],
)
def test_a_long_span_is_narrowed_to_its_supporting_sentences(
    question: str, answer: str, expected: list[str]
) -> None:
    spans = grounding.trim(whole(SPAN, 70), question, answer, 60)
    assert [span.text for span in spans] == expected
    assert not grounding.faults(question, answer, [span.text for span in spans])


def test_a_short_span_stays_as_it_is() -> None:
    span = whole("It is kept for 7 days. Nobody reads it.")
    assert grounding.trim(span, "How long is it kept?", "7 days.", 60) == (span,)


@given(
    st.lists(st.sampled_from([*SPAN.splitlines(keepends=True), "x" * 300, "wort " * 90, "\n"])),
    st.sampled_from([answer for _, answer, _ in PARAPHRASED]),
    st.integers(8, 60),
)
def test_narrowed_spans_are_the_documents_bytes_in_order_and_short(
    lines: list[str], answer: str, most: int
) -> None:
    text = "".join(lines) or "a"
    before = "… ü "
    document = (before + text).encode()
    span = whole(text, len(before.encode()))
    found = grounding.trim(span, "What is it?", answer, most)
    assert found
    reached = span.start
    for part in found:
        assert reached <= part.start <= part.end <= span.end
        assert document[part.start : part.end] == part.text.encode()
        # One word alone may be longer.
        assert count(part.text) <= most or len(part.text.split()) == 1
        reached = part.end
    if any(len(line) > 200 for line in lines):
        return
    kept = grounding.faults("What is it?", answer, [part.text for part in found])
    assert bool(kept) <= bool(grounding.faults("What is it?", answer, [text])) or count(text) > most


def test_no_right_pair_of_this_manual_is_lost_by_narrowing() -> None:
    lost = num_narrowed = 0
    for path in sorted((ROOT / "docs").glob("*.md"))[::3]:
        text = path.read_text()
        for _, question, answer, _ in written(path.name, path.stem, text):
            for _, part in sections(path.stem, text):
                if answer in part and not grounding.faults(question, answer, [part]):
                    spans = grounding.trim(whole(part), question, answer, 60)
                    num_narrowed += 1
                    texts = [span.text for span in spans]
                    assert all(count(text) <= 60 for text in texts)
                    lost += bool(grounding.faults(question, answer, texts))
    assert num_narrowed > 80
    assert lost == 0
