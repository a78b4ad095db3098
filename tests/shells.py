"""Pages as their generators write them: shells that a browser fills, and pages that are whole."""

PROSE = (
    "<p>The command reads every page under the start address and turns its main text into "
    "Markdown. Headings keep their anchors, so that a citation can name the section where a "
    "sentence stands. Menus, banners and footers are left out, and code blocks keep their text "
    "byte for byte, with the language that the page names.</p>"
)
NAV = "<nav><ul>" + "".join(
    f"<li><a href=/p{n}>A page about the subject number {n}</a></li>" for n in range(40)
) + "</ul></nav>"  # fmt: skip
ANALYTICS = (
    '<script async src="https://www.googletagmanager.com/gtag/js?id=G-1"></script><script>'
    "window.dataLayer=window.dataLayer||[];function gtag(){dataLayer.push(arguments)}"
    "gtag('js',new Date());gtag('config','G-1')</script>"
)
BULK = "<script>" + "self.__next_f.push([1,'" + "x" * 20000 + "'])" * 3 + "</script>"


def page(body, head="", attributes=""):
    return (
        "<!DOCTYPE html><html lang=en><head><meta charset=utf-8><title>Docs of the thing</title>"
        f"{head}</head><body{attributes}>{body}</body></html>"
    )


SHELLS = {
    "create-react-app": page(
        "<noscript>You need to enable JavaScript to run this app.</noscript>"
        '<div id="root"></div>',
        '<script defer="defer" src="/static/js/main.3f2a1b.js"></script>'
        '<link href="/static/css/main.css" rel="stylesheet">',
    ),
    "vite react": page(
        '<div id="root"></div>', '<script type="module" crossorigin src="/assets/index-a1.js">'
        '</script><link rel="stylesheet" crossorigin href="/assets/index.css">',
    ),
    "vite vue": page('<div id="app"></div><script type="module" src="/src/main.js"></script>'),
    "vue cli": page(
        "<noscript><strong>We're sorry but docs doesn't work properly without JavaScript enabled. "
        "Please enable it to continue.</strong></noscript><div id=app></div>",
        "<script defer src=/js/vendors.1.js></script><script defer src=/js/app.2.js></script>",
    ),
    "vue with a spinner": page(
        '<div id="app"><div class="loader"><div class="dot"></div><span>Loading...</span></div>'
        '</div><script src="/js/app.js"></script>'
    ),
    "angular": page(
        '<app-root></app-root><script src="runtime.js" type="module"></script>'
        '<script src="polyfills.js" type="module"></script><script src="main.js" type="module">'
        "</script>",
        '<base href="/">',
    ),
    "angular with words": page(
        "<app-root>Loading...</app-root><script src=main.0a1.js type=module></script>"
    ),
    "sveltekit without ssr": page(
        '<div style="display: contents"><script>{ __sveltekit_1 = {base: ""}; const element = '
        "document.currentScript.parentElement; Promise.all([import("
        '"/_app/immutable/entry/start.js"), import("/_app/immutable/entry/app.js")]).then('
        "([kit, app]) => {kit.start(app, element)}); }</script></div>",
        '<link rel="modulepreload" href="/_app/immutable/entry/start.js">'
        '<script type="module" src="/_app/immutable/x.js"></script>',
    ),
    "svelte template": page("", "<script defer src='/build/bundle.js'></script>"),
    "next without ssr": page(
        '<div id="__next"></div><script id="__NEXT_DATA__" type="application/json">{"props":'
        '{"pageProps":{}},"page":"/","query":{},"buildId":"1"}</script>',
        '<script src="/_next/static/chunks/main.js" defer></script>'
        "<noscript data-n-css></noscript>",
    ),
    "next app router that gave up": page(
        '<div><template data-dgst="BAILOUT_TO_CLIENT_SIDE_RENDERING"></template></div>'
        '<script src="/_next/static/chunks/webpack.js" async></script>' + BULK
    ),
    "nuxt without ssr": page(
        '<div id="__nuxt"><svg class="nuxt-spinner" viewBox="0 0 24 24"><path d="M1 1"></path>'
        '</svg></div><script>window.__NUXT__={}</script>',
        '<script type="module" src="/_nuxt/entry.1.js" crossorigin></script>',
    ),
    "gatsby in development": page(
        '<noscript id="gatsby-noscript">This app works best with JavaScript enabled.</noscript>'
        '<div id="___gatsby"></div><script src="/commons.js"></script>'
    ),
    "docsify": page(
        '<div id="app">Please wait...</div><script>window.$docsify = {name: "docs", repo: ""}'
        '</script><script src="//cdn.jsdelivr.net/npm/docsify@4/lib/docsify.min.js"></script>'
    ),
    "docsify with its menu": page(
        NAV + '<div id="app"></div><script src="//cdn.jsdelivr.net/npm/docsify@4"></script>'
        '<script src="/docsify.js"></script>'
    ),
    "redoc": page(
        '<redoc spec-url="openapi.yaml"></redoc><script '
        'src="https://cdn.redoc.ly/redoc/latest/bundles/redoc.standalone.js"></script>'
    ),
    "redoc in a box": page(
        '<div id="redoc-container"></div><script src="/redoc.standalone.js"></script>'
        "<script>Redoc.init('/openapi.json', {}, document.getElementById('redoc-container'))"
        "</script>"
    ),
    "swagger ui": page(
        '<div id="swagger-ui"></div><script src="./swagger-ui-bundle.js" charset="UTF-8"></script>'
        '<script src="./swagger-initializer.js"></script>'
    ),
    "stoplight elements": page(
        '<elements-api apiDescriptionUrl="/openapi.yaml" router="hash" layout="sidebar">'
        '</elements-api>',
        '<script src="https://unpkg.com/@stoplight/elements/web-components.min.js"></script>',
    ),
    "scalar": page(
        '<api-reference data-url="/o.json"></api-reference><script src="https://cdn/@scalar.js">'
        "</script>"
    ),
    "ember": page(
        '<script src="/assets/vendor.js"></script><script src="/assets/docs.js"></script>'
        '<div id="ember-bootstrap"></div>',
        '<meta name="docs/config/environment" content="%7B%22modulePrefix%22%3A%22docs%22%7D">',
    ),
    "flutter web": page(
        '<script src="flutter_bootstrap.js" async></script>',
        '<meta name="description" content="A new Flutter project."><base href="/">',
    ),
    "flutter web, older": page(
        "<script>var serviceWorkerVersion = null;</script><picture id=splash></picture>"
        '<script src="main.dart.js" type="application/javascript"></script>'
    ),
    "elm": page(
        '<div id="elm"></div><script src="/elm.js"></script><script>Elm.Main.init({node: '
        "document.getElementById('elm')})</script>"
    ),
    "quasar": page("<div id=q-app></div>", '<script type="module" src="/assets/i.js"></script>'),
    "polymer": page(
        "<my-docs-app></my-docs-app>", '<script type="module" src="/my-docs-app.js"></script>'
    ),
    "a shell with a cookie banner": page(
        '<div id="root"></div><div class="cookies">We use cookies to count our readers. '
        '<button>Accept</button></div><script src="/static/js/bundle.js"></script>'
    ),
    "a shell that says so": page(
        "<noscript><h1>Sorry</h1><p>This documentation requires JavaScript.</p></noscript>"
        '<div class="wrapper"></div><script src="/bundle.js"></script>'
    ),
    "a shell with a header": page(
        '<header><a href="/">Docs</a><a href="/api">API</a></header><main id="main"></main>'
        '<script type="module" src="/client.js"></script>'
    ),
}  # fmt: skip

WHOLE = {
    "next with ssr": page(
        f'<div id="__next"><main><h1>Install</h1>{PROSE}</main></div><script id="__NEXT_DATA__" '
        'type="application/json">{"props":{}}</script>' + BULK,
        '<script src="/_next/static/chunks/main.js" defer></script>',
    ),
    "next app router": page(
        f"<main><h1>Install</h1>{PROSE}</main><script src=/_next/webpack.js async></script>{BULK}"
    ),
    "docusaurus": page(
        '<div id="__docusaurus"><div role="region" aria-label="Skip to main content"></div>'
        f"{NAV}<main><article><h1>Install</h1>{PROSE}</article></main></div>",
        '<script src="/assets/js/runtime~main.js" defer></script>'
        '<script src="/assets/js/main.js" defer></script>',
    ),
    "mkdocs material": page(
        f"{NAV}<main class=md-main><article><h1>Install</h1>{PROSE}</article></main>"
        '<script id="__config" type="application/json">{"base": "."}</script>'
        '<script src="assets/javascripts/bundle.min.js"></script>',
    ),
    "gitbook": page(
        f"<div><header>Docs</header>{NAV}<main><h1>Install</h1>{PROSE}</main></div>{BULK}"
        '<script src="/_next/static/chunks/app.js" async></script>'
    ),
    "sphinx": page(
        f'<div class="document"><div class="body" role="main"><h1>Install</h1>{PROSE}</div></div>',
        "".join(f"<script src=_static/{name}.js></script>" for name in ("jquery", "doctools"))
        + '<script async src="https://cdn.jsdelivr.net/npm/mathjax@3/es5/tex.js"></script>',
    ),
    "sphinx index with little but links": page(
        f'<div class="body" role="main"><h1>Index</h1><ul>{NAV}</ul></div>',
        '<script src="_static/documentation_options.js"></script>',
    ),
    "vitepress": page(
        f'<div id="app"><div class="Layout">{NAV}<main><h1>Install</h1>{PROSE}</main></div></div>',
        '<script type="module" src="/assets/app.js"></script>',
    ),
    "nuxt with ssr": page(
        f'<div id="__nuxt"><main><h1>Install</h1>{PROSE}</main></div><script>window.__NUXT__={{}}'
        '</script><script type="module" src="/_nuxt/entry.js"></script>'
    ),
    "gatsby": page(
        f'<div id="___gatsby"><main><h1>Install</h1>{PROSE}</main></div>'
        '<script src="/webpack-runtime.js" async></script>'
    ),
    "angular universal": page(
        f'<app-root ng-version="17"><main><h1>Install</h1>{PROSE}</main></app-root>'
        '<script src="main.js" type="module"></script>'
    ),
    "astro": page(
        f"<main><h1>Install</h1>{PROSE}<astro-island uid=1></astro-island></main>",
        '<script type="module" src="/_astro/hoisted.js"></script>',
    ),
    "a blog with analytics": page(f"<article><h1>Post</h1>{PROSE}</article>{ANALYTICS}"),
    "a tiny page": page("<h1>Moved</h1><p>The manual has a new home.</p>"),
    "a tiny page with analytics": page(
        f"<h1>Moved</h1><p>The manual has a new home.</p>{ANALYTICS}"
    ),
    "a tiny page of sphinx": page(
        '<div class="body" role="main"><h1>Licence</h1><p>Apache 2.0.</p></div>',
        '<script src="_static/doctools.js"></script>',
    ),
    "a tiny page of next": page(
        '<div id="__next"><h1>404</h1><p>This page could not be found.</p></div>'
        '<script src="/_next/static/chunks/main.js" defer></script>'
    ),
    "a redirect by meta refresh": page(
        '<p>See <a href="new.html">the new page</a>.</p>',
        '<meta http-equiv="refresh" content="0; url=new.html">',
    ),
    "an empty page": page(""),
    "a page that asks for JavaScript in passing": page(
        f"<noscript>Search needs JavaScript enabled.</noscript><h1>Install</h1>{PROSE}"
        '<script src="/search.js"></script>'
    ),
    "a page about an empty root": page(
        f"<h1>How to mount</h1>{PROSE}<pre>&lt;div id=root&gt;&lt;/div&gt;</pre>"
        '<div id="root"></div><script src="/demo.js"></script>'
    ),
    "a list of links": page(
        f"<h1>Archive</h1>{NAV}<script src='/theme.js'></script>"
    ),
    "an embedded form": page(
        f"<h1>Write to us</h1>{PROSE}<iframe src='https://forms.example'></iframe>"
        "<script src='https://forms.example/embed.js'></script>"
    ),
    "a frameset": "<html><head><script src=x.js></script></head><frameset cols='20%,80%'>"
    "<frame src=a.html><frame src=b.html></frameset></html>",
}  # fmt: skip
